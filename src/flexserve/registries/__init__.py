"""Where models come from: what hubs publish, and what other programs keep on this machine.

Trusted with: weights on their way into the store; the process that pulls or imports seals them.
Sees: the names of models that are asked for, and the weights while they pass.
"""
