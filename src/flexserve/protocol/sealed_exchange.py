"""A sealed request and the opening of its answer, as its sender has them."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec

from flexserve.protocol.messages import Query
from flexserve.protocol.sealed_answer import SERVER_NONCE, FrameOpener, forged, frame_size, hash_of
from flexserve.protocol.sealed_request import Asked, Content, model_of, seal


class Exchange:
    """One request, sealed when it is made. `body` is what is sent; what comes back is fed to it.

    `asked`: with whatever number; it is sealed with 0. `owner`: a secret of 32 bytes that decides whose KV it
    may use. `public`, `token_hash`: of the attestation that was checked. `now`: milliseconds since 1970.

    Raises CallerError for a request that is too long.
    """

    def __init__(self, asked: Asked, owner: bytes, public: bytes, token_hash: bytes, now: int) -> None:
        number = {"serial": 0} if isinstance(asked, Query) else {"request": 0}
        asked = msgspec.structs.replace(asked, **number)
        self.asked = asked
        content = Content(secrets.token_bytes(16), now, owner, msgspec.msgpack.encode(asked))
        self.body, self._secret = seal(content, model_of(asked), public, token_hash)
        self._nonce = b""
        self._frames: FrameOpener | None = None

    def feed(self, data: bytes) -> list[Any]:
        """Return the messages that `data` completes. Raises PeerError as FrameOpener.feed does."""
        if self._frames is None:
            self._nonce += data
            if len(self._nonce) < SERVER_NONCE:
                return []
            nonce, data = self._nonce[:SERVER_NONCE], self._nonce[SERVER_NONCE:]
            self._frames = FrameOpener(self._secret, hash_of(self.body), nonce, frame_size(self.asked))
        return self._frames.feed(data)

    @property
    def ended(self) -> bool:
        """Whether the last frame has come."""
        return self._frames is not None and self._frames.ended

    def end(self) -> None:
        """Tell it that no more comes. Raises PeerError unless the answer is whole."""
        if self._frames is None:
            raise forged("it did not begin")
        self._frames.end()
