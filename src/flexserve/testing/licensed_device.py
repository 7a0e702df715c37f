"""A device that opens vendors' models: its key, its holder's answers and its ledger, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from flexserve.attestation.measurement import Measurement
from flexserve.protocol.evidence import Attested
from flexserve.trusted.identity.identity import Facts, Identity
from flexserve.trusted.store.key_holder import Unlock, answer
from flexserve.trusted.store.keys import DeviceKey, Unlocked
from flexserve.trusted.store.licences import Licences
from flexserve.trusted.store.store import Store

_PARTS = {"flexserve": b"f" * 64}


class LicensedDevice:
    """A Device whose key lies in `folder`. `clock`: seconds since 1970; `parts`: what it runs, measured."""

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], int] = lambda: int(time.time()),
        parts: dict[str, bytes] = _PARTS,
    ) -> None:
        self._key = DeviceKey.load_or_create(folder / "device.key")
        self._clock = clock
        self.identity = self._key.identity
        self.measured(parts)
        self.restart()
        self.store = Store(folder / "store", self)

    def measured(self, parts: dict[str, bytes]) -> None:
        """Have the device run other software."""
        self._who = Identity(self._key.attestation_root, lambda: Measurement(parts, 0.0), 1.0, {})

    def restart(self) -> None:
        """Have the key's holder forget what it remembers."""
        self._licences = Licences(self._key, self._clock)

    def attest(self, nonce: bytes) -> Attested:
        """Return who the device is."""
        said = self._who.attest(nonce, Facts("linux", {}, []))
        return Attested(0, said.chain, said.token)

    def wrap(self, model_id: bytes, key: bytes) -> bytes:
        """As DeviceKey."""
        return self._key.wrap(model_id, key)

    def unwrap(self, model_id: bytes, wrapped: bytes) -> bytes:
        """As DeviceKey."""
        return self._key.unwrap(model_id, wrapped)

    def sign(self, data: bytes) -> bytes:
        """As DeviceKey."""
        return self._key.sign(data)

    def verify(self, data: bytes, signature: bytes) -> None:
        """As DeviceKey."""
        self._key.verify(data, signature)

    def unlock(self, block: bytes, licence: bytes, entry: bytes) -> Unlocked:
        """As the key's holder."""
        said = answer(self._key, self._who, self._licences, Unlock(block, licence, entry))
        assert isinstance(said, Unlocked)
        return said
