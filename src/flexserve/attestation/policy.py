"""The policy file: what a client takes for a good secure world. `flexserve measure` writes one.

TOML; each field is optional, and a field that is not of it is an error. What a policy does not name is not
checked, and `Verified.unchecked` says so.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from flexserve.attestation.token import PROFILE
from flexserve.errors import CallerError

ALLOW_EMULATED = 'emulated = "allow"'

Hex = Annotated[str, Meta(pattern="^([0-9a-f]{2})*$", max_length=256)]
_Name = Annotated[str, Meta(min_length=1, max_length=64)]


class ModelRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model that may be served: SHA-256 of its GGUF, and the public key of who signed it ("": anybody)."""

    sha256: Hex
    signer: Hex = ""


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is good. Digests and keys are hex.

    `roots`: public keys of roots; none: whoever verifies pins the first that it sees. `emulated`: whether a
    root that its owner can imitate, in software or in an emulator, is good enough. `maximum_age`: seconds of
    a token. `layers`: the good code digests of each layer, by its name. `measurements`: the good digests of
    each part of the secure world. `models`: none: any.
    """

    profile: str = PROFILE
    roots: list[Hex] = []
    emulated: Literal["refuse", "allow"] = "refuse"
    maximum_age: Annotated[int, Meta(ge=1)] = 3600
    minimum_version: str = ""
    layers: dict[_Name, list[Hex]] = {}
    measurements: dict[_Name, list[Hex]] = {}
    models: list[ModelRule] = []


def load_policy(path: Path) -> Policy:
    """Return the policy in the file `path`. Raises CallerError for a file that is none, with the field."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), Policy)
    except OSError as error:
        raise CallerError(
            f"The policy {path} cannot be read: {error.strerror}.", hint="Write one with `flexserve measure`."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise CallerError(
            f"The policy {path} is not clear: {error}.",
            hint="Correct it, or write one with `flexserve measure`.",
        ) from None


def write_policy(policy: Policy) -> str:
    """Return `policy` as TOML, with a comment for who edits it."""
    lines = [
        "# What a good secure world is. What is not named here is not checked.",
        f"profile = {_quoted(policy.profile)}",
        f"roots = {_list(policy.roots)}  # public keys; none: the first that is seen is kept",
        f"emulated = {_quoted(policy.emulated)}  # or {_quoted('allow')}, for trying out",
        f"maximum_age = {policy.maximum_age}  # seconds of a token",
        f"minimum_version = {_quoted(policy.minimum_version)}",
    ]
    for title, table in (("layers", policy.layers), ("measurements", policy.measurements)):
        if table:
            lines += ["", f"[{title}]", *(f"{_quoted(name)} = {_list(table[name])}" for name in table)]
    for model in policy.models:
        lines += ["", "[[models]]", f"sha256 = {_quoted(model.sha256)}", f"signer = {_quoted(model.signer)}"]
    return "\n".join(lines) + "\n"


def _list(values: list[str]) -> str:
    return f"[{', '.join(map(_quoted, values))}]"


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()  # TOML's basic strings take what JSON's say
