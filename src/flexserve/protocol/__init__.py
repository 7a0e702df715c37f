"""The boundary between the worlds: what may be said, and how it is framed; and the port between policy and
mechanism.

Trusted with: strict parsing.
Sees: messages.
"""
