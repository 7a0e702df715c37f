"""Sealed requests and their answers: who passes them on cannot read them.

Trusted with: sealing keys, whose a sealed request is.
Sees: prompts, answers.
"""
