"""Attestation: what a secure world proves of itself, as bytes, and how a client verifies it.

Trusted with: a client's judgement of whom it seals its requests to.
Sees: public keys, digests, names.
"""
