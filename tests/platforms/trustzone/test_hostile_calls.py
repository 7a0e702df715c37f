"""What a kernel may call, and by which instruction; with a secure world that is not the product's.

The attacks themselves are in tests/attacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from machines import SecureWorld, ask, booted

from flexserve.platforms.trustzone.abi import SMC_BASE, Call, Command, PageState, Status

pytestmark = pytest.mark.vm

SECRET = b"SECRET!!"
PSCI_VERSION, PSCI_CPU_ON = 0x8400_0000, 0xC400_0003


class Scene:
    """A machine with one secure page and one of the monitor's."""

    def __init__(self, machine: Any) -> None:
        self._machine = machine
        self.world = SecureWorld(machine)
        self.world.attach()
        ((self.secure, _),) = self.world.want(1)
        self.world.each(Command.COMMIT, [(self.secure, 1)])
        self.world.fill([(self.secure, 1)], SECRET)
        ask(machine, "load flexattack")
        self.hidden = self.attack(f"find {PageState.MONITOR}")["ipa"]

    def attack(self, words: str) -> dict[str, Any]:
        return ask(self._machine, f"attack {words}")

    def status(self, call: Call, *arguments: int) -> int:
        """The status of a call of the monitor."""
        words = " ".join(f"{argument:#x}" for argument in arguments)
        return int(self.attack(f"smc {SMC_BASE + call:#x} {words}")["x0"])

    def safe(self) -> bool:
        """Whether the secret is where it was, as it was."""
        state = self.world.states[(self.secure - 0x4000_0000) // 4096]
        return state == PageState.SECURE and bytes(self.world.page(self.secure)) == SECRET * 512


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with booted() as machine:
        yield Scene(machine)


def test_calls_reach_the_monitor_by_smc_only(scene: Scene) -> None:
    assert scene.status(Call.VERSION) == Status.OK
    assert scene.attack(f"hvc {SMC_BASE:#x}")["x0"] == Status.UNKNOWN
    assert scene.attack(f"smc {PSCI_VERSION:#x}")["x0"] == 0x10000


@pytest.mark.parametrize("call", [Call.GRANT, Call.RETURN, Call.TAKE])
def test_what_is_in_use_is_denied(scene: Scene, call: Call) -> None:
    assert scene.status(call, scene.secure, 1) == Status.DENIED
    assert scene.status(call, scene.hidden, 1) == Status.DENIED
    assert scene.safe()


def test_protection_stays_on_while_it_is_needed(scene: Scene) -> None:
    assert scene.status(Call.RELAX) == Status.HELD


@pytest.mark.parametrize("cpu", [0, 1, 7, 1 << 32])
def test_no_cpu_starts_in_the_monitor(scene: Scene, cpu: int) -> None:
    assert scene.attack(f"smc {PSCI_CPU_ON:#x} {cpu:#x} {scene.hidden:#x} 0")["x0"] < 0
