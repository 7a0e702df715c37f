"""The identity of a secure world: its chain of layers, its token, its receipts' signature."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import msgspec

from flexserve import __version__
from flexserve.attestation import cose
from flexserve.attestation.layers import Layer, Mode, chain_of, key_of, next_cdi
from flexserve.attestation.measurement import Measurement, with_configuration, world_digest
from flexserve.attestation.token import RECEIPT, AttestedModel, Token, write_token
from flexserve.errors import CallerError, NormalWorldError
from flexserve.trusted.identity.sealing import LicenceKey, SealingKeys

WORLD = "world"  # the name of the last layer


class MachineLayer(msgspec.Struct, frozen=True):
    """A layer below the secure world that somebody else measured: its name, SHA-512 of its code."""

    name: str
    code: bytes
    authority: bytes = bytes(64)


class Facts(msgspec.Struct, frozen=True):
    """What the secure process says of where it runs, at the moment of the question."""

    hardware: str
    platform: dict[str, str]
    models: list[AttestedModel]
    machine: list[MachineLayer] = []


class Evidence(msgspec.Struct, frozen=True, tag=True):
    """A chain (the root's key, then certificates) and a token."""

    chain: list[bytes]
    token: bytes


class Identity:
    """Who this secure world is. `root` is secret; `measure` returns what the world consists of.

    `started`: the moment before which every measured file has to have been as it is (seconds since 1970).
    """

    def __init__(
        self,
        root: bytes | memoryview,
        measure: Callable[[], Measurement],
        started: float,
        config: dict[str, str],
    ) -> None:
        self._root = root
        self._measure, self._started = measure, started
        self._config = config
        self._measured: Measurement | None = None
        self._attested: list[Layer] | None = None
        self._keys = SealingKeys()

    def attest(self, nonce: bytes, facts: Facts, now: float | None = None) -> Evidence:
        """Return the chain and a token with `nonce`; the first time takes as long as measuring.

        Raises NormalWorldError when a file changed after the world had started.
        """
        moment = time.time() if now is None else now
        measured = self._measurement()
        self._attested = self._layers(facts.machine, measured)
        chain, cdi = chain_of(self._root, self._attested)
        sealing = self._keys.current(moment)
        token = Token(
            nonce,
            int(moment),
            sealing.end,
            facts.hardware,
            True,
            __version__,
            with_configuration(measured.parts, self._config),
            facts.platform,
            tuple(facts.models),
            sealing,
            LicenceKey(cdi).public,
        )
        return Evidence(chain, write_token(token, key_of(cdi)))

    def unseal(self, sealed: bytes, info: bytes) -> bytes:
        """Return what a client sealed to the key that a token showed. Raises CallerError."""
        return self._keys.unseal(sealed, info, time.time())

    def sign_receipt(self, payload: bytes) -> bytes:
        """Return a COSE_Sign1 of a receipt by the last token's key. Raises CallerError if there is none."""
        if self._attested is None:
            raise CallerError(
                "Nothing was attested yet.", hint="Ask for attestation first.", code="not_attested"
            )
        return cose.sign(payload, key_of(self._cdi(self._attested)), RECEIPT)

    def licence_key(self, machine: Sequence[MachineLayer]) -> LicenceKey:
        """Return the key of licences; `machine`: the layers below. The first time takes as `attest`.

        Raises NormalWorldError when a file changed after the world had started.
        """
        return LicenceKey(self._cdi(self._layers(machine, self._measurement())))

    def _measurement(self) -> Measurement:
        if self._measured is None:
            self._measured = self._measure()
        if self._measured.changed > self._started:
            raise NormalWorldError(
                "A file that the secure world can import changed after it had started.",
                hint="Restart the server.",
                code="world_changed",
            )
        return self._measured

    def _layers(self, machine: Sequence[MachineLayer], measured: Measurement) -> list[Layer]:
        layers = [
            Layer(each.code, authority=each.authority, mode=Mode.DEBUG, code_descriptor=each.name.encode())
            for each in machine
        ]
        code = world_digest(with_configuration(measured.parts, self._config))
        return [*layers, Layer(code, mode=Mode.DEBUG, code_descriptor=WORLD.encode())]

    def _cdi(self, layers: Sequence[Layer]) -> bytes | memoryview:
        """Return the secret of the last layer."""
        return functools.reduce(next_cdi, layers, self._root)
