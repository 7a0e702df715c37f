"""From text to tokens and back: templates, constraints of an answer, stops.

Trusted with: prompts, answers.
Sees: prompts, answers.
"""
