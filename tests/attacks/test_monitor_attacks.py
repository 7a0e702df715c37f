"""A compromised kernel against the monitor, on machines that are booted for it (`flexserve attack`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from flexserve.attacks.attempt import Verdict, attempt
from flexserve.attacks.trustzone import (
    ATTACKS,
    ATTACKS_ON_ANSWERS,
    Conversation,
    Scene,
    devices,
    images,
    reach,
)
from flexserve.errors import NormalWorldError
from flexserve.platforms.trustzone.build import Images


@pytest.fixture(scope="module")
def parts() -> Images:
    try:
        return images(lambda _what: None)
    except NormalWorldError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def scene(parts: Images) -> Iterator[Scene]:
    with Scene.set(parts) as scene:
        yield scene


@pytest.fixture(scope="module")
def talk(parts: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Conversation]:
    with Conversation.set(parts, tmp_path_factory.mktemp("target")) as talk:
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
        devices.copy_by_device,
        devices.lend_buffers_to_virtio,
        devices.move_registers,
    ],
    ids=lambda attack: attack.__name__,
)
def test_the_attack_succeeds_where_nothing_protects(attack: Callable[[Scene], str], scene: Scene):
    bare = Unprotected(
        scene.machine, scene.memory, scene.pages, scene.mailbox, scene.arena, scene.canary, scene.serials
    )
    made = attempt(attack, bare)
    assert made.verdict is Verdict.SUCCEEDED, made.detail


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_the_monitor_stops_the_attack(attack: Callable[[Scene], str], scene: Scene):
    made = attempt(attack, scene)
    assert made.verdict is Verdict.STOPPED, made.detail


@pytest.mark.parametrize("attack", ATTACKS_ON_ANSWERS, ids=lambda attack: attack.__name__)
def test_no_kernel_has_a_model_say_something_else(attack: Callable[[Conversation], str], talk: Conversation):
    made = attempt(attack, talk)
    assert made.verdict is Verdict.STOPPED, made.detail
