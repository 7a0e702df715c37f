"""A client's judgement: whether a chain and a token are those of a secure world that a policy calls good."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import NoReturn

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from flexserve.attestation.certificate_reader import read_certificate
from flexserve.attestation.cose import MalformedError, decode_key
from flexserve.attestation.layers import MAX_LAYERS, Layer, Mode
from flexserve.attestation.measurement import world_digest
from flexserve.attestation.policy import ALLOW_EMULATED, Policy
from flexserve.attestation.token import PROFILE, AttestedModel, SealingKey, Token
from flexserve.attestation.token_reader import read_token
from flexserve.errors import PeerError

_SKEW = 60  # seconds that two clocks may differ
_HINT = (
    "Do not send it anything. If you know of the change, as of an update there, have another policy written "
    "by `flexserve measure --policy FILE` on a machine that you trust."
)
_OF_ANOTHER_KIND = (
    "The policy is of another kind of secure world. If the server may have this one, have `flexserve measure "
    "--policy FILE` write a policy of it: with the server's --platform, and its --secure-world."
)


class AttestationRefusedError(PeerError):
    """A secure world is not what the policy calls good: in `field`, `expected` was not what was `found`."""

    default_code = "attestation_refused"

    def __init__(self, field: str, expected: str, found: str, hint: str = _HINT) -> None:
        super().__init__(
            f"The server is not what was asked for: {field}: expected {expected}, found {found}.", hint=hint
        )
        self.field, self.expected, self.found = field, expected, found


@dataclasses.dataclass(frozen=True, slots=True)
class AttestedLayer:
    """A layer of the chain: what its certificate names it, and the digest of its code."""

    name: str
    code: bytes
    mode: Mode


@dataclasses.dataclass(frozen=True, slots=True)
class Verified:
    """A secure world that was found good.

    `root` and `world_key` are public keys of 32 bytes: the world's signs tokens and receipts. `world`: the
    digest of all that the secure process can import. `unchecked`: what the policy did not name. `licences`:
    the public key to which vendors seal the keys of models.
    """

    root: bytes
    world_key: bytes
    layers: tuple[AttestedLayer, ...]
    world: bytes
    measurements: dict[str, bytes]
    platform: dict[str, str]
    models: tuple[AttestedModel, ...]
    hardware: str
    version: str
    debug: bool
    sealing: SealingKey
    issued: int
    expires: int
    unchecked: tuple[str, ...]
    licences: bytes = b""


def verify(
    chain: Sequence[bytes], token: bytes, nonce: bytes, policy: Policy, *, now: float | None = None
) -> Verified:
    """Return what a secure world proved of itself. `chain`: the root's key, then the layers' certificates.

    `nonce` is the one that was sent with the question; `now`: seconds since 1970, if not the clock's.
    Raises AttestationRefusedError, which names the field, what was expected of it and what was found.
    """
    moment = time.time() if now is None else now
    root, layers, key = _walk(chain)
    try:
        said = read_token(token, key)
    except MalformedError as error:
        raise AttestationRefusedError("token", "one signed by the world's layer", str(error)) from None
    _require("nonce", nonce.hex(), said.nonce.hex())
    _check_times(said, policy, moment)
    debug = said.debug or any(layer.mode is not Mode.NORMAL for _, layer in layers)
    if debug and policy.emulated != "allow":
        raise AttestationRefusedError(
            "debug status",
            "disabled",
            f"enabled (its root is of software or emulated: {said.hardware})",
            f"For trying out, allow it by this line in the policy: {ALLOW_EMULATED}",
        )
    _require("profile", policy.profile, PROFILE)
    if policy.roots:
        _require_one("root", policy.roots, root.public_bytes_raw().hex())
    unchecked = [] if policy.roots else ["root"]
    for name, layer in layers:
        unchecked += _check(f"layer {name}", policy.layers.get(name), layer.code.hex())
    for name in sorted(policy.layers.keys() - {name for name, _ in layers}):
        found = f"no such layer in that of {said.hardware}: {', '.join(name for name, _ in layers)}"
        raise AttestationRefusedError(f"layer {name}", "to be in the chain", found, _OF_ANOTHER_KIND)
    for name, digest in said.measurements.items():
        unchecked += _check(f"measurement {name}", policy.measurements.get(name), digest.hex())
    _require("world digest", world_digest(said.measurements).hex(), layers[-1][1].code.hex())
    for name in sorted(policy.measurements.keys() - said.measurements.keys()):
        raise AttestationRefusedError(f"measurement {name}", "to be in the token", "none")
    unchecked += _check_models(said, policy)
    if _numbers(said.version) < _numbers(policy.minimum_version):
        raise AttestationRefusedError("version", f"at least {policy.minimum_version}", said.version)
    return Verified(
        root.public_bytes_raw(),
        key.public_bytes_raw(),
        tuple(AttestedLayer(name, layer.code, layer.mode) for name, layer in layers),
        layers[-1][1].code,
        said.measurements,
        said.platform,
        said.models,
        said.hardware,
        said.version,
        debug,
        said.sealing,
        said.issued,
        said.expires,
        tuple(unchecked),
        said.licences,
    )


def _walk(chain: Sequence[bytes]) -> tuple[Ed25519PublicKey, list[tuple[str, Layer]], Ed25519PublicKey]:
    """Return the root's key, the layers with their names, and the last one's key."""
    if not 2 <= len(chain) <= MAX_LAYERS:
        raise AttestationRefusedError("chain", f"2 to {MAX_LAYERS} parts", str(len(chain)))
    try:
        root = key = decode_key(chain[0])
    except MalformedError as error:
        raise AttestationRefusedError("root", "a key of Ed25519", str(error)) from None
    layers = []
    for number, each in enumerate(chain[1:], 1):
        try:
            layer, key = read_certificate(each, key)
        except MalformedError as error:
            expected = "a certificate by the layer before it"
            raise AttestationRefusedError(f"certificate {number}", expected, str(error)) from None
        layers.append((layer.code_descriptor.decode(errors="replace"), layer))
    return root, layers, key


def _check_times(token: Token, policy: Policy, now: float) -> None:
    age = now - token.issued
    if age < -_SKEW:
        raise AttestationRefusedError("issued at", f"at most {now:.0f}", str(token.issued))
    if age > policy.maximum_age + _SKEW:
        raise AttestationRefusedError("age", f"at most {policy.maximum_age} s", f"{age:.0f} s")
    for field, end in (("expires at", token.expires), ("sealing key's end", token.sealing.end)):
        if end <= now:
            raise AttestationRefusedError(field, f"after {now:.0f}", str(end))


def _check(field: str, good: Sequence[str] | None, found: str) -> list[str]:
    """Raise unless `found` is good; return the field if the policy does not name it."""
    if good is None:
        return [field]
    _require_one(field, good, found)
    return []


def _check_models(token: Token, policy: Policy) -> list[str]:
    if not policy.models:
        return ["models"]
    for model in token.models:
        rules = [rule for rule in policy.models if rule.sha256 == model.digest]
        if not rules:
            _refuse_choice("model", [rule.sha256 for rule in policy.models], model.digest)
        if not any(rule.signer in ("", model.signer) for rule in rules):
            good = [rule.signer for rule in rules]
            _refuse_choice(f"signer of model {model.digest[:16]}", good, model.signer or "the device itself")
    return []


def _require(field: str, expected: str, found: str) -> None:
    if expected != found:
        raise AttestationRefusedError(field, expected, found)


def _require_one(field: str, good: Sequence[str], found: str) -> None:
    if found not in good:
        _refuse_choice(field, good, found)


def _refuse_choice(field: str, good: Sequence[str], found: str) -> NoReturn:
    raise AttestationRefusedError(field, " or ".join(good) or "none at all", found)


def _numbers(version: str) -> list[int]:
    return [int(part) if part.isdecimal() else 0 for part in version.split(".")] if version else []
