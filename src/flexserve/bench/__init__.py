"""Measurements: plain llama.cpp and FlexServe interleaved in one run; and the baselines.

Trusted with: what the person at the keyboard does.
Sees: test prompts.
"""
