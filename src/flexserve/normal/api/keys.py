"""API keys: who may use this server, and whose KV is whose."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from flexserve.errors import CallerError
from flexserve.private_files import check_file

MIN_KEY, MAX_KEY = 8, 512  # characters
MAX_KEYS = 1024
_MAX_FILE = 1 << 20  # bytes


class Keys:
    """The keys of a server; none: everybody is let in. Only their digests are kept.

    Raises CallerError for a key that no client could send, without quoting it.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        given = list(keys)
        if len(given) > MAX_KEYS:
            raise CallerError(f"There are more than {MAX_KEYS} API keys.", hint="Remove some.")
        for number, key in enumerate(given, 1):
            if not (
                MIN_KEY <= len(key) <= MAX_KEY and key.isascii() and key.isprintable() and " " not in key
            ):
                raise CallerError(
                    f"API key number {number} cannot be used.",
                    hint=f"A key has {MIN_KEY} to {MAX_KEY} printable ASCII characters and no spaces.",
                    code="bad_api_key",
                )
        self._digests = [_digest(key.encode()) for key in given]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, key: bytes) -> bool:
        """Return whether `key` is one of them. Takes as long for a wrong key as for a right one."""
        digest, found = _digest(key), False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found or not self._digests


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


def read_keys(path: Path) -> list[str]:
    """Return the keys in a file: one a line; empty lines and those that begin with # do not count.

    Raises CallerError when the file cannot be read, has no key, or others than its owner could have read
    or written it (code "key_file_unsafe").
    """
    try:
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
            check_file(path, info, f"The key file {path}", secret=True, code="key_file_unsafe")
            text = file.read(_MAX_FILE + 1).decode()
    except OSError as error:
        raise CallerError(f"{path} cannot be read: {error.strerror}.", hint="Check --api-key-file.") from None
    except UnicodeDecodeError:
        raise CallerError(f"{path} is not text.", hint="Write one key per line.") from None
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys or len(text) > _MAX_FILE:
        raise CallerError(f"{path} holds no keys.", hint="Write one key per line.", code="bad_api_key")
    return keys


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
