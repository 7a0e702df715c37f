"""Adapters behind two small ports: where secure memory comes from, and who may recall it.

Trusted with: that secure memory is what it says.
Sees: addresses.
"""
