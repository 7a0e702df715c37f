"""Answers who this secure world is: its facts go to the key's holder, which signs the token."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from flexserve.attestation.layers import DIGEST_SIZE
from flexserve.attestation.token import AttestedModel
from flexserve.errors import FlexServeError, QueueFullError
from flexserve.protocol.evidence import Attest, Attested
from flexserve.protocol.failures import failure_of
from flexserve.secure_world.resources import Guest, PlatformResources
from flexserve.trusted.identity.identity import Evidence, Facts, MachineLayer
from flexserve.trusted.store.manifest import Manifest

_MAX_WAITING = 64


class Witness(Protocol):
    """Who signs tokens, and opens what is sealed to the key in them (trusted.store.held_key.HeldKey)."""

    def attest(self, nonce: bytes, facts: Facts) -> Evidence:
        """Return a chain and a token with `nonce`."""

    def unseal(self, sealed: bytes, info: bytes) -> bytes:
        """Return what was sealed to the key of a token. Raises CallerError."""

    def sign_receipt(self, receipt: bytes) -> bytes:
        """Return a receipt, signed by the key of the last token. Raises CallerError before there is one."""


class Attester:
    """Answers each Attest, one after the other, in a thread of its own: the first takes a second.

    `stored` returns the manifests of the store's models. `send` sends to the normal world.
    """

    def __init__(
        self,
        witness: Witness,
        stored: Callable[[], Sequence[Manifest]],
        resources: PlatformResources,
        send: Callable[[msgspec.Struct], None],
    ) -> None:
        self._witness, self._stored, self._resources, self._send = witness, stored, resources, send
        self._waiting: queue.Queue[Attest] = queue.Queue(_MAX_WAITING)
        threading.Thread(target=self._work, name="attester", daemon=True).start()

    def ask(self, message: Attest) -> None:
        """Have `message` answered; at once, with a failure, when too many wait."""
        try:
            self._waiting.put_nowait(message)
        except queue.Full:
            self._refuse(message, QueueFullError("Too many ask for attestation.", hint="Retry in a moment."))

    def _work(self) -> None:
        while True:
            message = self._waiting.get()
            try:
                said = self._witness.attest(message.nonce, self._facts())
                self._send(Attested(message.serial, said.chain, said.token))
            except FlexServeError as error:
                self._refuse(message, error)

    def _refuse(self, message: Attest, error: FlexServeError) -> None:
        self._send(Attested(message.serial, [], b"", failure_of(error)))

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
