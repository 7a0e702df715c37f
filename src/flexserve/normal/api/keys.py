"""API keys: who may use this server, for what and how much; and whose KV is whose."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping

from flexserve.errors import CallerError
from flexserve.normal.quota import Quota, Rate

MIN_KEY, MAX_KEY = 8, 512  # characters
MAX_KEYS = 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class Right(enum.Enum):
    """What a key may do. Each may read: states, lists of models, metrics."""

    READ = "read"
    ASK = "ask"  # models
    RECALL = "recall"  # take memory back, make room for others, let a model go
    ADMIN = "admin"  # everything: bounds, pins and options of models, too


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """One key, of which only the digest is kept. `requests`, `tokens`: how much it may ask for; None: any."""

    name: str  # which logs have
    digest: bytes = dataclasses.field(repr=False)
    rights: frozenset[Right] = frozenset({Right.ADMIN})
    requests: Rate | None = None
    tokens: Rate | None = None

    @classmethod
    def of(cls, name: str, key: str) -> Key:
        """Return the key, with every right. Raises CallerError, unquoted, for one that no client sends."""
        if not (MIN_KEY <= len(key) <= MAX_KEY and key.isascii() and key.isprintable() and " " not in key):
            raise CallerError(
                f"The API key {name} cannot be used.",
                hint=f"A key has {MIN_KEY} to {MAX_KEY} printable ASCII characters and no spaces.",
                code="bad_api_key",
            )
        return cls(name, digest_of(key.encode()))

    def may(self, right: Right) -> bool:
        """Return whether it has `right`."""
        return right is Right.READ or not self.rights.isdisjoint({right, Right.ADMIN})


class Keys:
    """The keys of a server; none: everybody is let in. Belongs to one event loop.

    Raises CallerError for too many, or two of one name.
    """

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._keys = list(keys)
        if len(self._keys) > MAX_KEYS:
            raise CallerError(f"There are more than {MAX_KEYS} API keys.", hint="Remove some.")
        self._quotas = {key.name: Quota(key.requests, key.tokens) for key in self._keys}
        if len(self._quotas) < len(self._keys):
            names = [key.name for key in self._keys]
            twice = next(name for name in names if names.count(name) > 1)
            raise CallerError(f"Two API keys have the name {twice}.", hint="Rename one.", code="bad_api_key")

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, key: bytes) -> Key | None:
        """Return which of them `key` is. Takes as long for a wrong key as for a right one."""
        digest, found = digest_of(key), None
        for known in self._keys:
            if hmac.compare_digest(digest, known.digest):
                found = known
        return found

    def quota_of(self, key: Key) -> Quota:
        """Return what one of them may ask for now."""
        return self._quotas[key.name]

    def go_on_from(self, old: Keys) -> None:
        """Have keys that are as they were in `old` go on with what is left of their quotas."""
        for key in self._keys:
            if any(key == known for known in old._keys):
                self._quotas[key.name] = old._quotas[key.name]


def is_name(name: str) -> bool:
    """Return whether a key may be called so."""
    return _NAME.fullmatch(name) is not None


def digest_of(key: bytes) -> bytes:
    """Return what is kept of a key. One that FlexServe makes is random, so its digest needs no salt."""
    return hashlib.sha256(key).digest()


def key_of(headers: Mapping[str, str]) -> bytes:
    """Return the key that came as Authorization: Bearer, or as X-Api-Key; empty if none did."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        key = headers.get("x-api-key", "")
    return key.strip().encode("latin-1", "replace")


def owner_of(key: bytes, user: str | None) -> str:
    """Return whose requests those with `key` and OpenAI's `user` are: a digest, the same after a restart.

    The secure world reuses KV between requests of one owner only.
    """
    if not key and not user:
        return ""
    text = len(key).to_bytes(4, "little") + key + (user or "").encode(errors="replace")
    return hashlib.sha256(b"flexserve owner" + text).hexdigest()[:32]
