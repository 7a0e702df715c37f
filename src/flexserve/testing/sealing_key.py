"""A key that requests are sealed to, of a fixed seed: for tests, and for what plays a secure world."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from flexserve.errors import CallerError

_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


class FixedKey:
    """The key of `seed`: 64 bytes for ML-KEM-768 (d and z), then 32 for X25519."""

    def __init__(self, seed: bytes = bytes(range(96))) -> None:
        kem = MLKEM768PrivateKey.from_seed_bytes(seed[:64])
        curve = X25519PrivateKey.from_private_bytes(seed[64:])
        self.public = kem.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
        self._private = hpke.MLKEM768X25519PrivateKey(kem, curve)

    def unseal(self, sealed: bytes, info: bytes) -> bytes:
        """Return what was sealed to it. Raises CallerError."""
        try:
            return _SUITE.decrypt(sealed, self._private, info)
        except (InvalidTag, ValueError):
            raise CallerError("It is not sealed to this key.", code="not_sealed_to_us") from None
