"""A compromised kernel against the monitor, on machines that are booted for it (`flexserve attack`)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator

import pytest

from flexserve.attacks import licences
from flexserve.attacks.attempt import Verdict, attempt
from flexserve.attacks.trustzone import (
    ATTACKS,
    ATTACKS_BY_RESET,
    ATTACKS_ON_ANSWERS,
    devices,
    npu,
    reach,
)
from flexserve.attacks.trustzone.answers import Conversation
from flexserve.attacks.trustzone.inside.dump import places
from flexserve.attacks.trustzone.scene import CPUS, RAM_BYTES, Scene
from flexserve.emulator.build import Images
from flexserve.emulator.images import images_for
from flexserve.errors import NormalWorldError

pytestmark = pytest.mark.vm


def parts(*, npu: bool) -> Images:
    try:
        return images_for(ram_bytes=RAM_BYTES, cpus=CPUS, progress=lambda _what: None, npu=npu)
    except NormalWorldError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Scene.set(parts(npu=True)) as scene:
        yield scene


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conversation]:
    with Conversation.set(parts(npu=False), tmp_path_factory.mktemp("target")) as talk:
        yield talk


class Unprotected(Scene):
    """A scene whose secure page is one that the attacker may reach."""

    def secure(self) -> int:
        return self.own()


@pytest.mark.parametrize(
    "attack",
    [
        reach.read_as_kernel,
        reach.write_as_kernel,
        reach.execute_as_kernel,
        reach.map_into_program,
        reach.trace_program,
        reach.overwrite_lines,
        reach.translate_through_it,
        devices.copy_by_device,
        devices.lend_buffers_to_virtio,
        devices.move_registers,
        npu.copy_by_npu,
    ],
    ids=lambda attack: attack.__name__,
)
def test_the_attack_succeeds_where_nothing_protects(attack: Callable[[Scene], str], scene: Scene):
    fields = {field.name: getattr(scene, field.name) for field in dataclasses.fields(scene)}
    bare = Unprotected(**fields)
    made = attempt(attack, bare)
    assert made.verdict is Verdict.SUCCEEDED, made.detail


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_the_monitor_stops_the_attack(attack: Callable[[Scene], str], scene: Scene):
    made = attempt(attack, scene)
    assert made.verdict is Verdict.STOPPED, made.detail


@pytest.mark.parametrize("attack", ATTACKS_BY_RESET, ids=lambda attack: attack.__name__)
def test_a_reset_gives_nothing_away(attack: Callable[[Scene], str]):
    with Scene.set(parts(npu=True), resets=True) as scene:
        made = attempt(attack, scene)
    assert made.verdict is Verdict.STOPPED, made.detail


@pytest.mark.parametrize(
    "attack",
    [*ATTACKS_ON_ANSWERS, licences.use_the_licence_of_another_device],
    ids=lambda attack: attack.__name__,
)
def test_no_kernel_has_a_model_say_something_else(attack: Callable[[Conversation], str], talk: Conversation):
    made = attempt(attack, talk)
    assert made.verdict is Verdict.STOPPED, made.detail


@pytest.mark.skipif(os.geteuid() != 0, reason="to dump another process needs root")
def test_a_dump_finds_the_weights_where_the_secure_world_is_a_process(talk: Conversation):
    talk.ask()
    found = places({"the weights": [talk.target.canary]}, pid=talk.world.pid, machine=talk.machine)
    assert found == {"the weights": ["the process"]}
