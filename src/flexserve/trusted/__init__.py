"""The trusted application: it sees plaintext, and takes no decision about whose turn it is.

Trusted with: weights, KV, prompts, answers.
Sees: all of it.
"""
