"""Runs the policies: whose turn it is, what stays in memory and what goes.

Trusted with: nothing: it can make the service slow.
Sees: names, sizes, counts, times.
"""
