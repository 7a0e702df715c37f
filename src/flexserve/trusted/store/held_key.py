"""The secure process's side of the device key, which another process holds (trusted.store.key_holder)."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from flexserve.errors import Blame, CallerError, InternalError, rebuild
from flexserve.trusted.identity.identity import Evidence, Facts, MachineLayer
from flexserve.trusted.sidecar import Sidecar
from flexserve.trusted.store.key_holder import (
    MAX_MESSAGE,
    Answer,
    Attest,
    Done,
    Held,
    Refused,
    Request,
    Sign,
    SignReceipt,
    Unlock,
    Unseal,
    Unwrap,
)
from flexserve.trusted.store.keys import Unlocked, verify_signature

_PATIENCE = 60.0  # seconds for an answer, which takes a fraction of a millisecond
_encoder = msgspec.msgpack.Encoder()
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


class HeldKey:
    """A Device whose key is in another process. Thread-safe.

    `on_end` is called when that process is gone.
    """

    def __init__(self, holder: Sidecar, path: Path, on_end: Callable[[], None] = lambda: None) -> None:
        """Have `holder` (trusted.sidecar.start_key_holder) hold the key in `path`."""
        self._on_end = on_end
        self._asking = threading.Lock()
        self._holder, self._socket = holder, holder.socket
        self._socket.settimeout(_PATIENCE)
        self.pid = holder.pid
        self.identity = ""
        self.machine: Callable[[], list[MachineLayer]] = list  # what is below this secure world
        with contextlib.suppress(OSError):  # it is gone: whoever waits for it will hear
            self._socket.sendall(os.fsencode(path.absolute()))

    def wait_until_ready(self) -> None:
        """Wait until the holder has the key and is confined. Raises what DeviceKey.load_or_create raises."""
        said = self._hear()
        if not isinstance(said, Held):
            self._gone()
        self.identity = said.identity
        self._public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(said.identity))

    def wrap(self, model_id: bytes, key: bytes) -> bytes:
        """Raise CallerError: the holder seals nothing."""
        del model_id, key
        raise CallerError("A secure world seals no models.", hint="Use `flexserve add`.")

    def unwrap(self, model_id: bytes, wrapped: bytes) -> bytes:
        """Return the key of a model. Raises StoredDataError if this device did not wrap it."""
        return self._use(Unwrap(model_id, wrapped))

    def unlock(self, block: bytes, licence: bytes, entry: bytes) -> Unlocked:
        """Return what opens a vendor's model. Raises as Licences.judge, and what `machine` raises."""
        said = self._ask(Unlock(block, licence, entry, self.machine()))
        if not isinstance(said, Unlocked):
            self._gone()
        return said

    def sign(self, data: bytes) -> bytes:
        """Return this device's signature of a record. Raises CallerError for anything else."""
        return self._use(Sign(data))

    def verify(self, data: bytes, signature: bytes) -> None:
        """Raise StoredDataError unless `signature` is this device's signature of `data`."""
        verify_signature(self._public, data, signature)

    def attest(self, nonce: bytes, facts: Facts) -> Evidence:
        """Return a chain and a token; the first time takes a second. Raises as Identity.attest."""
        said = self._ask(Attest(nonce, facts))
        if not isinstance(said, Evidence):
            self._gone()
        return said

    def unseal(self, sealed: bytes, info: bytes) -> bytes:
        """Return what a client sealed to the key that a token showed. Raises CallerError if none did."""
        return self._use(Unseal(sealed, info))

    def sign_receipt(self, receipt: bytes) -> bytes:
        """Return a receipt, signed by the world's key. Raises CallerError before there is a token."""
        return self._use(SignReceipt(receipt))

    def close(self) -> None:
        """End the holder. Always safe."""
        self._socket.close()
        self._holder.wait()

    def _use(self, request: Request) -> bytes:
        said = self._ask(request)
        if not isinstance(said, Done):
            self._gone()
        return said.data

    def _ask(self, request: Request) -> Answer:
        with self._asking:
            try:
                self._socket.sendall(_encoder.encode(request))
            except OSError:
                self._gone()
            return self._hear()

    def _hear(self) -> Answer:
        """Return an answer. Raises the holder's own error."""
        data = b""
        with contextlib.suppress(OSError):
            data = self._socket.recv(MAX_MESSAGE)
        if not data:
            self._gone()
        said = _answers.decode(data)
        if isinstance(said, Refused):
            failure = said.failure
            raise rebuild(Blame(failure.blame), failure.code, failure.message, failure.hint)
        return said

    def _gone(self) -> NoReturn:
        self._on_end()
        raise InternalError("The process that holds the device key is gone.", hint="Install flexserve again.")
