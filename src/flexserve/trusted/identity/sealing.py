"""The private keys of HPKE to which clients seal: made in memory, used for a while, wiped."""

from __future__ import annotations

import dataclasses
import secrets

import cryptography.hazmat.backends.openssl.backend  # noqa: F401  # ML-KEM does so late: in the sandbox
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, Suite

from flexserve.attestation.token import SealingKey
from flexserve.errors import CallerError

LIFE = 7200  # seconds; after half of it the next key is shown, so that a token is good for the other half
_SEED, _SCALAR = 64, 32  # bytes of secrets: of ML-KEM-768, of X25519
_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


@dataclasses.dataclass(slots=True)
class _Pair:
    secret: bytearray
    shown: SealingKey

    def private(self) -> MLKEM768X25519PrivateKey:
        """Return the private key, which OpenSSL wipes when nobody has it any more."""
        view = memoryview(self.secret)
        return MLKEM768X25519PrivateKey(
            MLKEM768PrivateKey.from_seed_bytes(view[:_SEED]),
            X25519PrivateKey.from_private_bytes(view[_SEED:]),
        )


class SealingKeys:
    """The key that is shown now, and the one before it as long as a token names it."""

    def __init__(self) -> None:
        self._pairs: list[_Pair] = []

    def current(self, now: float) -> SealingKey:
        """Return the key to show at `now` (seconds since 1970). Wipes those that have ended."""
        self._wipe(now)
        if not self._pairs or self._pairs[-1].shown.end - now < LIFE / 2:
            self._pairs.append(_new_pair(int(now) + LIFE))
        return self._pairs[-1].shown

    def unseal(self, sealed: bytes, info: bytes, now: float) -> bytes:
        """Return what was sealed to one of the keys. Raises CallerError (code "not_sealed_to_us")."""
        self._wipe(now)
        for pair in reversed(self._pairs):
            try:
                return _SUITE.decrypt(sealed, pair.private(), info)
            except (InvalidTag, ValueError):
                continue
        raise CallerError(
            "It is not sealed to a key that this server has.",
            hint="Ask for a new attestation, and seal it again.",
            code="not_sealed_to_us",
        )

    def _wipe(self, now: float) -> None:
        for pair in self._pairs:
            if pair.shown.end <= now:
                pair.secret[:] = bytes(len(pair.secret))
        self._pairs = [pair for pair in self._pairs if pair.shown.end > now]


def _new_pair(end: int) -> _Pair:
    secret = bytearray(secrets.token_bytes(_SEED + _SCALAR))
    pair = _Pair(secret, SealingKey(b"", end))
    view = memoryview(secret)
    kem = MLKEM768PrivateKey.from_seed_bytes(view[:_SEED]).public_key().public_bytes_raw()
    curve = X25519PrivateKey.from_private_bytes(view[_SEED:]).public_key().public_bytes_raw()
    pair.shown = SealingKey(kem + curve, end)
    return pair
