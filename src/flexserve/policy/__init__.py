"""Decisions, pure: names, sizes, counts and times in, choices out. No I/O, clock, thread or secret.

Trusted with: nothing: it can make the service slow.
Sees: names, sizes, counts, times.
"""
