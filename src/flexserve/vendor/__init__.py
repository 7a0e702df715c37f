"""A vendor's side of models that many devices open: sealing once, licences for attested devices, key release.

Trusted with: the vendor's signing key, the content keys; on a device, nothing.
Sees: content keys, weights while sealing.
"""
