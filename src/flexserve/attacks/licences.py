"""A host that wants more of a vendor's model than it was licensed for, and a relay before the key server.

The host owns every file of the store but cannot sign as the device or as the vendor. The control of each
attack is the same model with its own licence, which has to answer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec

from flexserve.attacks.attempt import Gained, Pointless
from flexserve.attacks.target import Target
from flexserve.attestation.measurement import Measurement
from flexserve.attestation.policy import Policy
from flexserve.attestation.verification import AttestationRefusedError, Verified, verify
from flexserve.errors import CallerError, FlexServeError
from flexserve.harness.shapes import SHAPES
from flexserve.harness.synth import write_synthetic
from flexserve.protocol.evidence import Attested
from flexserve.trusted.identity.identity import Evidence, Facts, Identity
from flexserve.trusted.identity.sealing import LicenceKey
from flexserve.trusted.store.aead import TAG_SIZE
from flexserve.trusted.store.keys import DeviceKey
from flexserve.trusted.store.licences import read_terms
from flexserve.trusted.store.manifest import BLOCK_SIZE, CHUNK
from flexserve.trusted.store.store import Store
from flexserve.vendor.content import Block, read_content, seal_content
from flexserve.vendor.device import adopt
from flexserve.vendor.keys import Content, VendorKeys
from flexserve.vendor.licensing import Terms, issue
from flexserve.vendor.server import KeyRelease

_NAME = "licensed"
_HOUR = 3600  # seconds
_REFUSALS = ("licence_", "unknown_vendor", "vendor_forged", "stored_data_bad")


class World(Protocol):
    """A secure world, as a host has it."""

    def attest(self, nonce: bytes) -> Attested:
        """Return who it says that it is."""

    def generate(self, model: str, text: str, tokens: int, /) -> Any:
        """Continue `text`. Raises the world's own error."""


class Attacked(Protocol):
    """A scene with a secure world and its store."""

    @property
    def target(self) -> Target:
        """The store, and the device key, which only its owner uses."""

    @property
    def secret(self) -> Any:
        """The `World` under attack."""


@dataclasses.dataclass(slots=True)
class _Sold:
    """A vendor's model on the device under attack, with what the vendor has."""

    scene: Attacked
    folder: Path
    keys: VendorKeys
    now: float

    @classmethod
    @contextlib.contextmanager
    def nothing(cls, scene: Attacked) -> Iterator[_Sold]:
        """Have a vendor that the device knows nothing of."""
        with tempfile.TemporaryDirectory(prefix="flexserve-attack-") as folder:
            yield cls(scene, Path(folder), VendorKeys.make(Path(folder) / "keys"), 1_700_000_000.0)

    @classmethod
    @contextlib.contextmanager
    def to(cls, scene: Attacked) -> Iterator[_Sold]:
        """Sell version 1 to the device, and see that it answers. Raises Pointless if it does not."""
        with cls.nothing(scene) as sold:
            try:
                sold.add(1)
                if answer := sold.refusal():
                    raise Pointless(f"not even its own licence opens the model: {answer}")
                yield sold
            finally:
                with contextlib.suppress(FlexServeError):
                    Store(scene.target.root, DeviceKey.load(scene.target.key)).remove(_NAME)
                (sold.models / f"{_NAME}.ledger").unlink(missing_ok=True)

    @property
    def models(self) -> Path:
        """The folder of the store that models lie in."""
        return self.scene.target.root / "models"

    def file(self, version: int, keys: VendorKeys | None = None) -> Block:
        """Return the first block of the file of a version, sealed when it is not there yet."""
        keys = keys or self.keys
        path = self.path(version, keys)
        if not path.exists():
            source = self.folder / "source.gguf"
            if not source.exists():
                write_synthetic(source, SHAPES["small-llama"], "q8_0")
            seal_content(source, path, keys, name=_NAME, version=version, progress=_quiet)
        return read_content(path)

    def path(self, version: int, keys: VendorKeys | None = None) -> Path:
        """Return where the file of a version is."""
        return self.folder / f"{(keys or self.keys).public[:8]}-{version}.flex"

    def license(self, version: int, device: Verified | None = None, keys: VendorKeys | None = None) -> bytes:
        """Return a newer licence than all before, for the device under attack unless another is named."""
        keys, self.now = keys or self.keys, self.now + 1
        content = keys.content(self.file(version, keys).manifest.id_bytes)
        terms = Terms(100 * 365 * 24 * _HOUR)
        return issue(keys, content, device or _verified(self.scene.secret), terms, now=self.now)

    def add(self, version: int) -> None:
        """Add a version with a licence, as the device's owner does."""
        block = self.file(version)
        device = DeviceKey.load(self.scene.target.key)
        signed = self.license(version)
        adopt(self.models, self.path(version), block, signed, device=device, progress=_quiet)

    def put(self, version: int, licence: bytes | None, data: bytes | None = None) -> None:
        """Put a file and a licence where the model lies, as a host can."""
        manifest = self.file(version).manifest
        (self.models / f"{_NAME}.flex").write_bytes(data or self.path(version).read_bytes())
        if licence is not None:
            (self.models / f"{manifest.model_id}.licence").write_bytes(licence)

    def licence_file(self, version: int) -> Path:
        """Return where the licence of a version lies in the store."""
        return self.models / f"{self.file(version).manifest.model_id}.licence"

    def refusal(self) -> str:
        """Ask the model; return the code of the refusal ("": it answers)."""
        try:
            self.scene.secret.generate(_NAME, "Kato bime.", 2)
        except FlexServeError as error:
            if not error.code.startswith(_REFUSALS):
                raise Pointless(f"it was refused for another reason: {error}") from error
            return error.code
        return ""

    def refused(self) -> str:
        """Return how the secure world refuses. Raises Gained when it answers."""
        if code := self.refusal():
            return f"the secure world refuses it ({code})"
        raise Gained("the model answers")


def use_the_licence_of_another_device(scene: Attacked) -> str:
    """Open a vendor's model by the licence of another device."""
    with _Sold.to(scene) as sold:
        sold.put(2, sold.license(2, _stranger(_verified(scene.secret))))
        return sold.refused()


def alter_a_licence(scene: Attacked) -> str:
    """Have a licence last longer than its vendor wrote."""
    with _Sold.to(scene) as sold:
        path = sold.licence_file(1)
        signed = path.read_bytes()
        at = signed.index(b"gexpires") + len(b"gexpires")
        path.write_bytes(signed[: at + 1] + bytes([signed[at + 1] ^ 0x40]) + signed[at + 2 :])
        return sold.refused()


def roll_a_model_back(scene: Attacked) -> str:
    """Put an older version of a vendor's model back, with its licence."""
    return _rolled_back(scene, replaced_by=2)


def roll_a_licence_back(scene: Attacked) -> str:
    """Put an older licence back, in place of the one that took its place."""
    return _rolled_back(scene, replaced_by=1)


def _rolled_back(scene: Attacked, *, replaced_by: int) -> str:
    """Add version 1 and then version `replaced_by`, which answers; put the first one's licence back."""
    with _Sold.to(scene) as sold:
        old = sold.licence_file(1).read_bytes()
        sold.add(replaced_by)
        _answers(sold)
        sold.put(1, old)
        return sold.refused()


def roll_all_files_back(scene: Attacked) -> str:
    """Put an older version back together with the ledger of its time, while the secure world runs."""
    with _Sold.to(scene) as sold:
        kept = {path: path.read_bytes() for path in sold.models.glob(f"{_NAME}.*")}
        kept[sold.licence_file(1)] = sold.licence_file(1).read_bytes()
        sold.add(2)
        _answers(sold)
        for path, data in kept.items():
            path.write_bytes(data)
        return sold.refused()


def exchange_chunks(scene: Attacked) -> str:
    """Exchange two chunks of a vendor's file."""
    with _Sold.to(scene) as sold:
        sold.file(2)
        whole, size = sold.path(2).read_bytes(), CHUNK + TAG_SIZE
        first, second = whole[BLOCK_SIZE:][:size], whole[BLOCK_SIZE + size :][:size]
        if len(second) < size:
            raise Pointless("the model has one chunk only")
        altered = whole[:BLOCK_SIZE] + second + first + whole[BLOCK_SIZE + 2 * size :]
        sold.put(2, sold.license(2), altered)
        return sold.refused()


def cut_a_file_off(scene: Attacked) -> str:
    """Cut the end of a vendor's file off."""
    with _Sold.to(scene) as sold:
        sold.file(2)
        sold.put(2, sold.license(2), sold.path(2).read_bytes()[:-1])
        return sold.refused()


def pass_for_the_vendor(scene: Attacked) -> str:
    """Put a model of another vendor, who licenses it to this device, under a vendor's name."""
    with _Sold.to(scene) as sold:
        other = VendorKeys.make(sold.folder / "other")
        block, signed = sold.file(9, other), sold.license(9, keys=other)
        (sold.models / f"{_NAME}.flex").write_bytes(sold.path(9, other).read_bytes())
        (sold.models / f"{block.manifest.model_id}.licence").write_bytes(signed)
        return sold.refused()


def read_a_licence_on_its_way(scene: Attacked) -> str:
    """Get the content key out of a licence that a relay passes on."""
    with _Sold.nothing(scene) as sold:
        content, signed = _content(sold), sold.license(1)
        if content.key in signed:
            raise Gained("the content key is in the licence")
        try:
            LicenceKey(secrets.token_bytes(32)).open(read_terms(signed, sold.file(1).vendor))
        except FlexServeError as error:
            return f"another key does not open it ({error.code})"
        raise Gained("another key opened it")


def ask_with_forged_evidence(scene: Attacked) -> str:
    """Get a licence by a chain and a token of one's own that claim what the device is."""
    good = _verified(scene.secret)
    nonce, own = secrets.token_bytes(32), _imitation(good)
    return _not_released(scene, own.attest(nonce, Facts(good.hardware, good.platform, [])), nonce)


def ask_with_old_evidence(scene: Attacked) -> str:
    """Get a licence by evidence that the device gave somebody else before."""
    nonce = secrets.token_bytes(32)
    said = scene.secret.attest(nonce)
    return _not_released(scene, Evidence(said.chain, said.token), nonce, given=False)


def ask_with_another_nonces_evidence(scene: Attacked) -> str:
    """Get a licence by old evidence, under a nonce that the key server just gave."""
    said = scene.secret.attest(secrets.token_bytes(32))
    return _not_released(scene, Evidence(said.chain, said.token), secrets.token_bytes(32))


def put_a_key_into_the_evidence(scene: Attacked) -> str:
    """As a relay, have the licence sealed to a key of one's own."""
    nonce = secrets.token_bytes(32)
    said, own = scene.secret.attest(nonce), LicenceKey(secrets.token_bytes(32)).public
    forged = said.token.replace(_verified(scene.secret).licences, own)
    if forged == said.token:
        raise Pointless("the token shows no key of licences")
    return _not_released(scene, Evidence(said.chain, forged), nonce)


ATTACKS = (
    use_the_licence_of_another_device,
    alter_a_licence,
    roll_a_model_back,
    roll_a_licence_back,
    roll_all_files_back,
    exchange_chunks,
    cut_a_file_off,
    pass_for_the_vendor,
    read_a_licence_on_its_way,
    ask_with_forged_evidence,
    ask_with_old_evidence,
    ask_with_another_nonces_evidence,
    put_a_key_into_the_evidence,
)


# ---- the vendor ----------------------------------------------------------------------------------


def _quiet(_done: int, _total: int) -> None:
    """Say nothing of progress."""


def _verified(world: World) -> Verified:
    nonce = secrets.token_bytes(32)
    said = world.attest(nonce)
    return verify(said.chain, said.token, nonce, Policy(emulated="allow"))


def _imitation(good: Verified) -> Identity:
    return Identity(secrets.token_bytes(32), lambda: Measurement(dict(good.measurements), 0.0), 1.0, {})


def _stranger(good: Verified) -> Verified:
    """Return another device that runs the same."""
    nonce = secrets.token_bytes(32)
    said = _imitation(good).attest(nonce, Facts(good.hardware, good.platform, []))
    return verify(said.chain, said.token, nonce, Policy(emulated="allow"))


def _answers(sold: _Sold) -> None:
    if code := sold.refusal():
        raise Pointless(f"the newer one does not open: {code}")


def _content(sold: _Sold) -> Content:
    return sold.keys.content(sold.file(1).manifest.id_bytes)


def _not_released(scene: Attacked, said: Evidence, nonce: bytes, *, given: bool = True) -> str:
    """Ask a key server; return by what it refuses. `given`: whether the nonce is one of its own."""
    with _Sold.nothing(scene) as sold:
        policy = Policy(emulated="allow", roots=[_verified(scene.secret).root.hex()])
        release, content = KeyRelease(sold.keys, policy, Terms(_HOUR)), _content(sold)
        own = release.challenges.new()
        honest = scene.secret.attest(own)
        _ask(release, Evidence(honest.chain, honest.token), own, content)
        if given:
            release.challenges.expect(nonce)
        try:
            _ask(release, said, nonce, content)
        except AttestationRefusedError as error:
            return f"the key server refuses it by {error.field}"
        raise Gained("the key server gave a licence")


def _ask(release: KeyRelease, said: Evidence, nonce: bytes, content: Content) -> bytes:
    asked = {"nonce": nonce.hex(), "chain": said.chain, "token": said.token, "content": content.content.hex()}
    try:
        return release.licence(msgspec.json.encode(asked))
    except CallerError as error:
        raise Pointless(f"it was no request: {error}") from error
