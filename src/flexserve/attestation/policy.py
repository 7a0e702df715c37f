"""The policy file: what a client takes for a good secure world. `flexserve measure` writes one.

TOML; each field is optional, and a field that is not of it is an error. What a policy does not name is not
checked, and `Verified.unchecked` says so.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
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


def load_policy(path: Path, signer: Path | None = None) -> Policy:
    """Return the policy in the file `path`. Raises CallerError for a file that is none, with the field.

    With a `signer` (a file with its public key, Ed25519 in PEM) the file `path`.sig has to be his signature
    of the policy's bytes, as `openssl pkeyutl -sign -rawin` writes it.
    """
    try:
        content = path.read_bytes()
        if signer is not None:
            _check_signature(path, content, signer)
        return msgspec.convert(tomllib.loads(content.decode()), Policy)
    except OSError as error:
        raise CallerError(
            f"The policy {path} cannot be read: {error.strerror}.", hint="Write one with `flexserve measure`."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise CallerError(
            f"The policy {path} is not clear: {error}.",
            hint="Correct it, or write one with `flexserve measure`.",
        ) from None


def _check_signature(path: Path, content: bytes, signer: Path) -> None:
    """Raise CallerError unless `signer` signed `content`."""
    try:
        key = load_pem_public_key(signer.read_bytes())
    except OSError as error:
        raise CallerError(f"The key {signer} cannot be read: {error.strerror}.") from None
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise CallerError(
            f"{signer} is no public key of Ed25519 in PEM.",
            hint="`openssl pkey -in KEY.pem -pubout` writes one.",
        )
    try:
        key.verify(path.with_name(f"{path.name}.sig").read_bytes(), content)
    except OSError as error:
        raise _not_signed(path, f"{path}.sig cannot be read: {error.strerror}") from None
    except InvalidSignature:
        raise _not_signed(path, f"{path}.sig is not that key's signature of it") from None


def _not_signed(path: Path, why: str) -> CallerError:
    return CallerError(
        f"The policy {path} is not signed by who should have: {why}.",
        hint="Get policy and signature anew from where the key came from.",
        code="policy_not_signed",
    )


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
