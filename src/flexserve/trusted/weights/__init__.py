"""Weights in memory, and bringing them back in time.

Trusted with: weights.
Sees: weights, while decrypting.
"""
