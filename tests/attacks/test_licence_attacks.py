"""A host that owns the files, and a relay before the key server, get nothing of a vendor's model."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexserve.attacks import licences
from flexserve.attacks.attempt import Attempt, Verdict, attempt
from flexserve.attacks.target import Target
from flexserve.errors import FlexServeError
from flexserve.protocol.evidence import Attested
from flexserve.testing.licensed_device import LicensedDevice
from flexserve.trusted.store import licences as judging


class World:
    """What opens models and reads all of them as a secure world does."""

    def __init__(self, device: LicensedDevice) -> None:
        self._device = device

    def attest(self, nonce: bytes) -> Attested:
        return self._device.attest(nonce)

    def generate(self, model: str, text: str, tokens: int, /) -> None:
        del text, tokens
        assert self._device.store.terms(model)
        with self._device.store.open(model) as opened:
            opened.read_into(0, memoryview(bytearray(opened.manifest.size)))


class Scene:
    def __init__(self, folder: Path) -> None:
        device = LicensedDevice(folder)
        self.secret = World(device)
        self.target = Target(device.store.root, folder / "device.key", b"")


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def made(attack, scene: Scene) -> Attempt:
    return attempt(attack, scene)


@pytest.mark.parametrize("attack", licences.ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_is_stopped_says_by_what_and_leaves_nothing(attack, scene: Scene):
    found = made(attack, scene)
    assert found.verdict is Verdict.STOPPED, found
    left = [path.name for path in (scene.target.root / "models").iterdir()]
    assert left in ([], ["ledger.lock"])


@pytest.mark.parametrize(
    ("attack", "rule"),
    [
        (licences.use_the_licence_of_another_device, "require_device"),
        (licences.pass_for_the_vendor, "require_vendor"),
    ],
)
def test_without_the_rule_that_stops_it_an_attack_gets_further(
    attack, rule: str, scene: Scene, monkeypatch: pytest.MonkeyPatch
):
    stopped = made(attack, scene).detail
    usual = getattr(judging, rule)

    def lax(*given):
        try:
            return usual(*given)
        except FlexServeError:
            return given[0].vendor if rule == "require_vendor" else None

    monkeypatch.setattr(judging, rule, lax)
    assert made(attack, scene).detail != stopped
