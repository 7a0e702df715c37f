"""The attack module does what it says where nothing stops it, and is stopped where something should.

Without the first half, the second would prove nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from machines import SecureWorld, ask, booted

from flexserve.platforms.trustzone.abi import SMC_BASE, Call, Command, PageState, Status

FAULT = -14
SIGBUS = 7
EFAULT = 14
RETURN = 0xD65F03C0  # the instruction
SECRET = b"SECRET!!"
SMMU, FW_CFG, SECURE_UART, SECURE_RAM, GPIO = 0x0905_0000, 0x0902_0000, 0x0904_0000, 0x0E00_0000, 0x090B_0000
PSCI_VERSION, PSCI_CPU_ON = 0x8400_0000, 0xC400_0003
WAYS = ("direct", "table", "device")


class Scene:
    """A machine with one secure page, one of the attacker's own and one of the monitor's."""

    def __init__(self, machine: Any) -> None:
        self._machine = machine
        self.world = SecureWorld(machine)
        self.world.attach()
        ((self.secure, _),) = self.world.want(1)
        self.world.each(Command.COMMIT, [(self.secure, 1)])
        self.world.fill([(self.secure, 1)], SECRET)
        ask(machine, "load flexattack")
        self.own = self.attack("own")["ipa"]
        self.hidden = self.attack(f"find {PageState.MONITOR}")["ipa"]

    def attack(self, words: str) -> dict[str, Any]:
        return ask(self._machine, f"attack {words}")

    def touch(self, address: int, how: str) -> dict[str, Any]:
        result: dict[str, Any] = ask(self._machine, f"run touch {address:#x} {how}")["result"]
        return result

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
    with booted(devices=("lsi53c895a",)) as machine:
        yield Scene(machine)


# ---- reaching -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_memory_of_its_own_can_be_reached(scene: Scene, way: str) -> None:
    assert scene.attack(f"poke {way} {scene.own + 512:#x} 4711")["fault"] == 0
    assert scene.attack(f"peek {way} {scene.own + 512:#x}") == {"fault": 0, "value": 4711}


@pytest.mark.parametrize("way", WAYS)
def test_secure_memory_cannot(scene: Scene, way: str) -> None:
    assert scene.attack(f"peek {way} {scene.secure:#x}")["fault"] == FAULT
    assert scene.attack(f"poke {way} {scene.secure:#x} 1")["fault"] == FAULT
    assert scene.safe()


@pytest.mark.parametrize("where", [SMMU, FW_CFG, SECURE_UART, SECURE_RAM, GPIO, 0])
@pytest.mark.parametrize("way", ["table", "device"])
def test_what_is_hidden_cannot_be_guessed(scene: Scene, way: str, where: int) -> None:
    assert scene.attack(f"peek {way} {where:#x}")["fault"] == FAULT
    assert scene.attack(f"poke {way} {where:#x} 1")["fault"] == FAULT


@pytest.mark.parametrize("way", WAYS)
def test_the_monitor_cannot_be_read_or_patched(scene: Scene, way: str) -> None:
    assert scene.attack(f"peek {way} {scene.hidden:#x}")["fault"] == FAULT
    assert scene.attack(f"poke {way} {scene.hidden:#x} 1")["fault"] == FAULT


def test_code_runs_from_its_own_memory_and_from_no_other(scene: Scene) -> None:
    scene.attack(f"poke direct {scene.own:#x} {RETURN:#x}")
    assert scene.attack(f"execute code {scene.own:#x}")["fault"] == 0
    for address in (scene.secure, scene.hidden, SECURE_RAM):
        assert scene.attack(f"execute code {address:#x}")["fault"] == FAULT


def test_a_program_that_maps_it_is_killed(scene: Scene) -> None:
    assert scene.touch(scene.own, "read")["signal"] == 0
    for how in ("read", "write"):
        assert scene.touch(scene.secure, how)["signal"] == SIGBUS
    assert scene.touch(scene.secure, "send")["errno"] == EFAULT
    assert scene.safe()


# ---- devices ------------------------------------------------------------------------------------


def test_a_device_copies_its_own_memory(scene: Scene) -> None:
    scene.attack(f"poke direct {scene.own + 1024:#x} 12345")
    assert scene.attack(f"dma-read {scene.own + 1024:#x}")["value"] == 12345
    scene.attack(f"dma-write {scene.own + 1024:#x} 54321")
    assert scene.attack(f"peek direct {scene.own + 1024:#x}")["value"] == 54321


def test_a_device_reads_and_writes_nothing_secure(scene: Scene) -> None:
    secret = int.from_bytes(SECRET, "little")
    assert scene.attack(f"dma-read {scene.secure:#x}")["value"] != secret
    scene.attack(f"dma-write {scene.secure:#x} 1")
    assert scene.safe()


def test_a_device_does_not_write_to_the_monitor(scene: Scene) -> None:
    before = bytes(scene.world.page(scene.hidden))
    scene.attack(f"dma-write {scene.hidden:#x} 1")
    assert bytes(scene.world.page(scene.hidden)) == before


# ---- calls --------------------------------------------------------------------------------------


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


def test_no_cpu_starts_in_the_monitor(scene: Scene) -> None:
    for cpu in (0, 1, 7, 1 << 32):
        assert scene.attack(f"smc {PSCI_CPU_ON:#x} {cpu:#x} {scene.hidden:#x} 0")["x0"] < 0


@pytest.mark.parametrize("conduit", ["smc", "hvc"])
def test_random_calls_change_nothing(scene: Scene, conduit: str) -> None:
    before = scene.world.counts()
    with listening(scene.world):
        came = scene.attack(f"fuzz {conduit} 20000 4711")
    assert (came["fault"], came["rounds"]) == (0, 20000)
    assert scene.safe()
    assert scene.world.counts() == before


# ---- two CPUs -----------------------------------------------------------------------------------


@contextlib.contextmanager
def listening(world: SecureWorld) -> Iterator[None]:
    """Have the secure world take its events, so that the ring has room."""
    end = threading.Event()

    def listen() -> None:
        while not end.wait(0.002):
            world.hear()

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def test_no_write_reaches_a_page_after_it_was_granted(scene: Scene) -> None:
    with listening(scene.world):
        came = scene.attack("race-touch 3000")
    assert came["faults"] > 0, "they did not meet"
    assert (came["leaks"], came["refused"]) == (0, 0)


def test_of_two_that_grant_the_same_page_one_succeeds(scene: Scene) -> None:
    with listening(scene.world):
        came = scene.attack("race-double 500")
    assert (came["grants"], came["returns"]) == (0, 0)
