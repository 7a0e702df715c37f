"""Requests while they run.

Trusted with: prompts, answers.
Sees: prompts, answers.
"""
