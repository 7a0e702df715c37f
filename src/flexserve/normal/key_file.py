"""The file of API keys: a line for each. `#` begins a comment, and empty lines do not count.

    NAME sha256:DIGEST [rights=ask,recall,admin] [requests=60/minute] [tokens=100000/day]
    KEY                                             alone in its line: the key itself, with every right

The digest is the SHA-256 of the key, in hexadecimal. Without `rights` a key may ask.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from flexserve.errors import CallerError
from flexserve.normal import small_file
from flexserve.normal.api.keys import Key, Right, is_name
from flexserve.normal.quota import Rate
from flexserve.private_files import check_file

_MAX_FILE = 1 << 20  # bytes
_HASHED = "sha256:"


def read_keys(path: Path) -> list[Key]:
    """Return the keys in a file.

    Raises CallerError when the file cannot be read, has no key or a line that is none, or others than its
    owner could have read or written it (code "key_file_unsafe").
    """
    keys = [key for _, key in _keys_in(_read(path), path)]
    if not keys:
        raise CallerError(
            f"{path} holds no keys.",
            hint=f"`flexserve api-key add NAME --file {path}` makes one.",
            code="bad_api_key",
        )
    return keys


def list_keys(path: Path) -> list[Key]:
    """Return the keys in a file; none if there is no file. Raises CallerError as read_keys."""
    return [key for _, key in _keys_in(_read(path), path)] if path.exists() else []


def add_key(path: Path, key: Key) -> None:
    """Add a line to a file, which need not exist. Raises CallerError, also for a name that it has already."""
    if not is_name(key.name):
        raise CallerError(
            "A key's name has letters, digits and . _ @ -, 64 at most.",
            hint="Choose another.",
            code="bad_api_key",
        )
    text = _read(path) if path.exists() else "# API keys of FlexServe: see docs/operate.md\n"
    if any(known.name == key.name for _, known in _keys_in(text, path)):
        raise CallerError(
            f"{path} has a key of the name {key.name}.",
            hint=f"`flexserve api-key rm {key.name}` removes it.",
            code="bad_api_key",
        )
    if text and not text.endswith("\n"):
        text += "\n"
    small_file.write(path, f"{text}{line_of(key)}\n".encode())


def remove_key(path: Path, name: str) -> None:
    """Remove the line of the key `name`; the others stay as they are. Raises CallerError if there is none."""
    text = _read(path) if path.exists() else ""
    number = next((number for number, key in _keys_in(text, path) if key.name == name), None)
    if number is None:
        raise CallerError(
            f"{path} has no key of that name.",
            hint="`flexserve api-key list` shows them.",
            code="bad_api_key",
        )
    lines = text.splitlines(keepends=True)
    del lines[number - 1]
    small_file.write(path, "".join(lines).encode())


def line_of(key: Key) -> str:
    """Return the line that says what `key` is."""
    rights = ",".join(right.value for right in Right if right in key.rights)
    words = [key.name, _HASHED + key.digest.hex(), f"rights={rights}"]
    words += [f"requests={key.requests}"] if key.requests else []
    words += [f"tokens={key.tokens}"] if key.tokens else []
    return " ".join(words)


def parse_rights(text: str) -> frozenset[Right]:
    """Return the rights that "ask,recall" names. Raises CallerError."""
    try:
        return frozenset(Right(word.strip()) for word in text.split(","))
    except ValueError:
        known = ", ".join(right.value for right in Right)
        raise CallerError(
            "There is no such right.", hint=f"Rights are {known}.", code="bad_api_key"
        ) from None


def _keys_in(text: str, path: Path) -> list[tuple[int, Key]]:
    """Return (number of its line, key) for each of a file's keys."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            key = Key.of(f"line-{number}", words[0]) if len(words) == 1 else _parse(words)
        except CallerError as error:
            raise CallerError(
                f"Line {number} of {path}: {error.message}", hint=error.hint, code="bad_api_key"
            ) from None
        found.append((number, key))
    return found


def _parse(words: list[str]) -> Key:
    name, digest, *rest = words
    said = dict(word.partition("=")[::2] for word in rest)
    raw = b""
    with contextlib.suppress(ValueError):
        raw = bytes.fromhex(digest.removeprefix(_HASHED))
    unknown = said.keys() - {"rights", "requests", "tokens"}
    if (
        not is_name(name)
        or not digest.startswith(_HASHED)
        or len(raw) != 32
        or unknown
        or len(said) < len(rest)
    ):
        raise CallerError(
            "This is neither a key nor NAME sha256:DIGEST [rights=…] [requests=…] [tokens=…].",
            hint="`flexserve api-key add NAME` writes such a line.",
        )
    return Key(
        name,
        raw,
        parse_rights(said.get("rights", "ask")),
        Rate.parse(said["requests"]) if "requests" in said else None,
        Rate.parse(said["tokens"]) if "tokens" in said else None,
    )


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
            check_file(path, info, f"The key file {path}", secret=True, code="key_file_unsafe")
            text = file.read(_MAX_FILE + 1)
        if len(text) > _MAX_FILE:
            raise CallerError(f"{path} is larger than 1 MiB.", hint="Remove keys.", code="bad_api_key")
        return text.decode()
    except OSError as error:
        raise CallerError(f"{path} cannot be read: {error.strerror}.", hint="Check --api-key-file.") from None
    except UnicodeDecodeError:
        raise CallerError(f"{path} is not text.", hint="Write one key per line.") from None
