"""Answers who this secure world is: its facts go to the key's holder, which signs the token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from flexserve.attestation.layers import DIGEST_SIZE
from flexserve.attestation.token import AttestedModel
from flexserve.protocol.evidence import Attest, Attested
from flexserve.secure_world.resources import Guest, PlatformResources
from flexserve.serving.attestations import Attestations
from flexserve.trusted.identity.identity import Evidence, Facts, MachineLayer
from flexserve.trusted.store.manifest import Manifest


class Witness(Protocol):
    """Who signs tokens, and opens what is sealed to the key in them (trusted.store.held_key.HeldKey)."""

    def attest(self, nonce: bytes, facts: Facts) -> Evidence:
        """Return a chain and a token with `nonce`."""

    def unseal(self, sealed: bytes, info: bytes) -> bytes:
        """Return what was sealed to the key of a token. Raises CallerError."""

    def sign_receipt(self, receipt: bytes) -> bytes:
        """Return a receipt, signed by the key of the last token. Raises CallerError before there is one."""


class Attester:
    """Answers each Attest (serving.attestations): the first takes a second.

    `stored` returns the manifests of the store's models. `send` sends to the normal world.
    """

    def __init__(
        self,
        witness: Witness,
        stored: Callable[[], Sequence[Manifest]],
        resources: PlatformResources,
        send: Callable[[msgspec.Struct], None],
    ) -> None:
        self._witness, self._stored, self._resources = witness, stored, resources
        self.ask = Attestations(self._answer, send).ask

    def _answer(self, message: Attest) -> Attested:
        said = self._witness.attest(message.nonce, self._facts())
        return Attested(message.serial, said.chain, said.token)

    def _facts(self) -> Facts:
        protection = self._resources.memory.protection
        platform = {
            "memory": protection.name,
            "protected": "yes" if protection.protected else "no",
            "label": self._resources.summary,
            "rollback": "refused while this secure world lives; no counter outlives it",
        }
        models = [_attested(manifest) for manifest in self._stored()]
        if self._resources.guest is None:
            return Facts("linux", platform, models)
        return Facts("qemu-virt", platform, models, machine_layers(self._resources.guest))


def _attested(manifest: Manifest) -> AttestedModel:
    vendor = manifest.vendor
    if vendor is None:
        return AttestedModel(manifest.digest)
    return AttestedModel(manifest.digest, vendor.key, vendor.version)


def machine_layers(guest: Guest) -> list[MachineLayer]:
    """Return what is below the secure world on a machine. Raises MonitorError unless it protects."""
    from flexserve.platforms.trustzone.measured_boot import started_el2

    return [
        MachineLayer("el3", guest.firmware, guest.firmware_authority),
        MachineLayer("el2", started_el2(guest.pages.mailbox).ljust(DIGEST_SIZE, b"\0")),
    ]
