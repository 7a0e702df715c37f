"""Driven worlds and synthetic models, for benchmarks, attacks and tests.

Trusted with: nothing: the product does not import it.
Sees: test prompts.
"""
