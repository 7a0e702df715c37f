"""The private keys of HPKE. Clients seal to keys that are made in memory, used for a while, and wiped.

Vendors seal to one that the layers' secrets give again whenever the same layers start.
"""

from __future__ import annotations

import dataclasses
import hashlib

import cryptography.hazmat.backends.openssl.backend  # noqa: F401  # ML-KEM does so late: in the sandbox
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from flexserve.attestation.licence import Licence
from flexserve.attestation.token import SealingKey
from flexserve.errors import CallerError, StoredDataError
from flexserve.platforms.linux.secret_page import SecretPage

LIFE = 7200  # seconds; after half of it the next key is shown, so that a token is good for the other half
_SEED, _SCALAR = 64, 32  # bytes of secrets: of ML-KEM-768, of X25519
_SECRETS = _SEED + _SCALAR
_LICENCES = b"flexserve licence key v1"
_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


@dataclasses.dataclass(frozen=True, slots=True)
class _Pair:
    """A key that is shown, and the place of its secrets in the page."""

    place: int
    shown: SealingKey


class SealingKeys:
    """The key that is shown now, and the one before it as long as a token names it."""

    def __init__(self) -> None:
        self._page = SecretPage()
        self._pairs: list[_Pair] = []

    def current(self, now: float) -> SealingKey:
        """Return the key to show at `now` (seconds since 1970). Wipes those that have ended."""
        self._wipe(now)
        if not self._pairs or self._pairs[-1].shown.end - now < LIFE / 2:
            self._pairs.append(self._new_pair(int(now) + LIFE))
        return self._pairs[-1].shown

    def unseal(self, sealed: bytes, info: bytes, now: float) -> bytes:
        """Return what was sealed to one of the keys. Raises CallerError (code "not_sealed_to_us")."""
        self._wipe(now)
        for pair in reversed(self._pairs):
            try:
                return _SUITE.decrypt(sealed, self._private(pair.place), info)
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
                self._page.wipe(pair.place, _SECRETS)
        self._pairs = [pair for pair in self._pairs if pair.shown.end > now]

    def _new_pair(self, end: int) -> _Pair:
        """Make a key in a free place: there are two keys at once, three while one is about to end."""
        taken = {pair.place for pair in self._pairs}
        place = next(place for place in range(0, 4 * _SECRETS, _SECRETS) if place not in taken)
        self._page.fill(place, _SECRETS)
        return _Pair(place, SealingKey(_public(*self._halves(place)), end))

    def _private(self, place: int) -> MLKEM768X25519PrivateKey:
        return MLKEM768X25519PrivateKey(*self._halves(place))

    def _halves(self, place: int) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
        return _halves(self._page.view(place, _SECRETS))


class LicenceKey:
    """The key to which vendors seal the keys of models: the same one whenever the same layers start."""

    def __init__(self, cdi: bytes | memoryview) -> None:
        """Derive it from the secret of the last layer."""
        halves = _halves(HKDF(SHA512(), length=_SECRETS, salt=None, info=_LICENCES).derive(cdi))
        self._private, self.public = MLKEM768X25519PrivateKey(*halves), _public(*halves)
        self.digest = hashlib.sha256(self.public).digest()

    def open(self, licence: Licence) -> bytes:
        """Return the content key. Raises StoredDataError when it is sealed otherwise than it should be."""
        try:
            return _SUITE.decrypt(licence.key, self._private, licence.binding())
        except (InvalidTag, ValueError):
            raise StoredDataError(
                "The licence holds no key for this device.",
                hint="Ask the vendor for another one.",
                code="licence_forged",
            ) from None


def _halves(secrets: bytes | memoryview) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    """Return the private keys, which OpenSSL wipes when nobody has them any more."""
    return MLKEM768PrivateKey.from_seed_bytes(secrets[:_SEED]), X25519PrivateKey.from_private_bytes(
        secrets[_SEED:]
    )


def _public(kem: MLKEM768PrivateKey, curve: X25519PrivateKey) -> bytes:
    return kem.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
