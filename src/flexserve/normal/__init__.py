"""The UNTRUSTED side: HTTP relay, memory manager, launching the secure world.

Trusted with: availability only.
Sees: prompts and answers in transit; model names and sizes.
"""
