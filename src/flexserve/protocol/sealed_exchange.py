"""A sealed request and the opening of its answer, as its sender has them."""

from __future__ import annotations

import codecs
import dataclasses
import functools
import secrets
from typing import Any

import msgspec
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from flexserve.errors import CallerError
from flexserve.protocol.answers import Delta, Finished
from flexserve.protocol.messages import Query
from flexserve.protocol.rendered import Pieces, Rendered
from flexserve.protocol.sealed_answer import LARGE, SERVER_NONCE, SMALL, frame_size, hash_of
from flexserve.protocol.sealed_answer_reader import FrameOpener, forged
from flexserve.protocol.sealed_request import (
    CONTINUED,
    MAX_PADDED,
    MIN_PADDED,
    SECRET,
    Asked,
    Content,
    Header,
    body_key,
    info,
    model_of,
    name_of,
)

_PUBLIC_KEM, _PUBLIC_CURVE = 1184, 32  # bytes of a public key: of ML-KEM-768, then of X25519
_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


@dataclasses.dataclass(frozen=True, slots=True)
class SealedSecret:
    """The secret of one request, as it stands in front of its content: with its header, sealed or named.

    It depends on no content, so it can be made before there is one.
    """

    secret: bytes = dataclasses.field(repr=False)
    clear: bytes


class Exchange:
    """One request, sealed when it is made. `body` is what is sent; what comes back is fed to it.

    `asked`: with whatever number; it is sealed with 0. `owner`: a secret of 32 bytes that decides whose KV it
    may use. `public`, `token_hash`: of the attestation that was checked. `now`: milliseconds since 1970.
    `secret`: one that was sealed to them for the model, and for no other request; None: it is made now.

    Raises CallerError for a request that is too long.
    """

    def __init__(
        self,
        asked: Asked | Rendered,
        owner: bytes,
        public: bytes,
        token_hash: bytes,
        now: int,
        *,
        secret: SealedSecret | None = None,
    ) -> None:
        self.asked, encoded, self._frame_size = _encoded(asked)
        self.next = secrets.token_bytes(SECRET)  # is the secret of one request more, once the answer is here
        content = Content(secrets.token_bytes(16), now, owner, encoded, self.next)
        model = asked.model if isinstance(asked, Rendered) else model_of(asked)
        secret = secret or sealed_secret(model, public, token_hash)
        self.body, self._secret = seal(content, secret), secret.secret
        self._nonce = b""
        self._frames: FrameOpener | None = None
        self._text = codecs.getincrementaldecoder("utf-8")("replace")  # of pieces

    def feed(self, data: bytes) -> list[Any]:
        """Return the messages that `data` completes. Raises PeerError as FrameOpener.feed does."""
        if self._frames is None:
            self._nonce += data
            if len(self._nonce) < SERVER_NONCE:
                return []
            nonce, data = self._nonce[:SERVER_NONCE], self._nonce[SERVER_NONCE:]
            self._frames = FrameOpener(self._secret, hash_of(self.body), nonce, self._frame_size)
        return [each for message in self._frames.feed(data) for each in self._whole(message)]

    def _whole(self, message: Any) -> list[Any]:
        """Return what a message is for who asked: pieces are text, as soon as their characters are whole."""
        match message:
            case Pieces():
                return [Delta(message.request, self._text.decode(message.data), message.tokens)]
            case Finished() if rest := self._text.decode(b"", final=True):
                return [Delta(message.request, rest, 0), message]
        return [message]

    @property
    def ended(self) -> bool:
        """Whether the last frame has come."""
        return self._frames is not None and self._frames.ended

    def end(self) -> None:
        """Tell it that no more comes. Raises PeerError unless the answer is whole."""
        if self._frames is None:
            raise forged("it did not begin")
        self._frames.end()


def _encoded(asked: Asked | Rendered) -> tuple[Asked | Rendered, bytes, int]:
    """Return what is asked with the number 0, as it is sealed, and the bytes of a frame of its answer."""
    if isinstance(asked, Rendered):
        return asked, asked.encoded(), SMALL if asked.most else LARGE
    number = {"serial": 0} if isinstance(asked, Query) else {"request": 0}
    asked = msgspec.structs.replace(asked, **number)
    return asked, msgspec.msgpack.encode(asked), frame_size(asked)


@functools.lru_cache(maxsize=4)
def public_key(public: bytes) -> hpke.MLKEM768X25519PublicKey:
    """Return the public key that `public` encodes: that of ML-KEM-768, then X25519's. Raises ValueError."""
    if len(public) != _PUBLIC_KEM + _PUBLIC_CURVE:
        raise ValueError(f"a sealing key has {_PUBLIC_KEM + _PUBLIC_CURVE} bytes")
    return hpke.MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(public[:_PUBLIC_KEM]),
        X25519PublicKey.from_public_bytes(public[_PUBLIC_KEM:]),
    )


def padded_size(size: int) -> int:
    """Return the bytes that a content of `size` bytes takes, its length included."""
    return max(MIN_PADDED, 1 << (size + 4 - 1).bit_length())


def sealed_secret(model: str, public: bytes, token_hash: bytes) -> SealedSecret:
    """Return a new secret for a request to `model` ("": none), sealed to `public`.

    `token_hash`: of the attestation that was checked. Raises ValueError for what is no public key.
    """
    header = Header(token_hash, model).encoded()
    secret = secrets.token_bytes(SECRET)
    return SealedSecret(secret, header + _SUITE.encrypt(secret, public_key(public), info(header)))


def named_secret(secret: bytes, model: str, token_hash: bytes) -> SealedSecret:
    """Return the secret of a request to `model` that an earlier request brought (`Exchange.next`)."""
    return SealedSecret(secret, Header(token_hash, model, CONTINUED).encoded() + name_of(secret))


def seal(content: Content, secret: SealedSecret) -> bytes:
    """Return the body that asks `content` of who opens `secret`. Raises CallerError if it is too long."""
    inner = msgspec.msgpack.encode(content)
    size = padded_size(len(inner))
    if size > MAX_PADDED:
        raise CallerError("The prompt is too long.", hint="Make it shorter.")
    plain = (len(inner).to_bytes(4, "little") + inner).ljust(size, b"\0")
    aead, nonce = body_key(secret.secret, secret.clear)
    return secret.clear + aead.encrypt(nonce, plain, None)
