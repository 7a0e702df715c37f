"""What a compromised normal world would try against a secure world, tried: `flexserve attack`.

Trusted with: nothing: it is the attacker.
Sees: what it can get.
"""
