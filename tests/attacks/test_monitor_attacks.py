"""A compromised kernel against the monitor, on a machine that is booted for it (`flexserve attack`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from flexserve.attacks import trustzone
from flexserve.attacks.attempt import Verdict, attempt
from flexserve.attacks.trustzone import Scene
from flexserve.errors import NormalWorldError


@pytest.fixture(scope="module")
def machine() -> Iterator[Scene]:
    try:
        parts = trustzone.images(lambda _what: None)
    except NormalWorldError as error:
        pytest.skip(str(error))
    with Scene.set(parts) as scene:
        yield scene


class Unprotected(Scene):
    """A scene whose secure page is one that the attacker may reach."""

    def secure(self) -> int:
        return self.own()


@pytest.mark.parametrize(
    "attack",
    [
        trustzone.read_as_kernel,
        trustzone.write_as_kernel,
        trustzone.map_into_program,
        trustzone.copy_by_device,
    ],
    ids=lambda attack: attack.__name__,
)
def test_the_attack_succeeds_where_nothing_protects(attack: Callable[[Scene], str], machine: Scene):
    bare = Unprotected(machine.machine, machine.memory, machine.pages, machine.arena, machine.canary)
    made = attempt(attack, bare)
    assert made.verdict is Verdict.SUCCEEDED, made.detail


@pytest.mark.parametrize("attack", trustzone.ATTACKS, ids=lambda attack: attack.__name__)
def test_the_monitor_stops_the_attack(attack: Callable[[Scene], str], machine: Scene):
    made = attempt(attack, machine)
    assert made.verdict is Verdict.STOPPED, made.detail
