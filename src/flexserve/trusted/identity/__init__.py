"""Who this secure world is: its layers' keys, its token, and the keys that clients seal requests to.

Trusted with: the attestation root, the world's signing key, the private sealing keys.
Sees: secrets that are sealed to it.
"""
