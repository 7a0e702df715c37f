"""KV: sequences in memory, and sealed copies of them on disk."""
