"""Decisions, pure: names, sizes, counts and times in, choices out. No I/O, clock, thread or secret."""
