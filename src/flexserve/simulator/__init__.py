"""The paper's board in virtual time: no real isolation, no real memory pressure; for tests and studies.

Trusted with: nothing: no secret reaches it.
Sees: sizes, times.
"""
