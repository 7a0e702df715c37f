"""KV: sequences in memory, and sealed copies of them on disk.

Trusted with: KV, and whose it is.
Sees: KV, tokens.
"""
