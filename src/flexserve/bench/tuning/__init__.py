"""Which settings of the memory policy are best, found on simulated hosts: `flexserve tune`.

Trusted with: nothing: no secret reaches it.
Sees: sizes, times, names of models.
"""
