"""Sealed requests and their answers: who passes them on cannot read them.

Trusted with: secrets of sealed requests, whose such a request is.
Sees: prompts, answers.
"""
