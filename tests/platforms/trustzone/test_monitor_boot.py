"""The monitor on real machines: CPUs come and go, so does protection, and somebody tries to gain by it."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from machines import BASE, SecureWorld, ask, booted

import flexserve
from flexserve.emulator.boot_rom import reference_layers
from flexserve.errors import NormalWorldError
from flexserve.platforms.trustzone.abi import (
    HIDDEN_BYTES,
    OFFSET_SLEEPING,
    SMC_BASE,
    Byte,
    Call,
    MeasuredByte,
    Status,
)
from flexserve.testing.machines import images_of
from flexserve.units import GIB, MIB

pytestmark = pytest.mark.vm

PSCI_VERSION, PSCI_SUSPEND, PSCI_MIGRATION, PSCI_FEATURES = 0x8400_0000, 0x8400_0001, 0x8400_0006, 0x8400_000A
PSCI_CPU_ON, PSCI_AFFINITY = 0xC400_0003, 0xC400_0004
NOT_SUPPORTED, INVALID_PARAMETERS, ALREADY_ON, INVALID_ADDRESS = -1, -2, -4, -9
KERNEL = 0x4020_0000  # some address where a CPU may start
RETURN = 0xD65F_03C0
ACKNOWLEDGE_GROUP_0, ENABLE_GROUP_0 = 0xD538_C800, 0xD518_CCC0  # of ICC_IAR0_EL1, to ICC_IGRPEN0_EL1
IMAGE = 0x900  # of hidden memory: in the middle of the monitor's code


class Guest:
    """A machine whose kernel does what we say, and whose driver leaves protection to us."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine
        self.world = SecureWorld(machine)
        ask(machine, "write /sys/module/flexmem/parameters/idle_ms 0")
        ask(machine, "load flexattack")
        self.hidden = BASE + machine.ram_bytes - HIDDEN_BYTES

    def attack(self, words: str) -> dict[str, Any]:
        return ask(self.machine, f"attack {words}")

    def smc(self, function: int, *arguments: int) -> int:
        words = " ".join(f"{argument:#x}" for argument in arguments)
        return int(self.attack(f"smc {function:#x} {words}")["x0"])

    def call(self, call: Call) -> int:
        return self.smc(SMC_BASE + call)

    def online(self, cpu: int, state: int) -> None:
        ask(self.machine, f"write /sys/devices/system/cpu/cpu{cpu}/online {state}")

    def cpus(self) -> str:
        return str(ask(self.machine, "read /sys/devices/system/cpu/online")["text"]).strip()

    def query(self) -> bytes:
        """Ask whether protection is on; return what the monitor said since."""
        self.bell()
        self.world.query()
        self.world.wait(lambda: self.world.bytes != b"")
        return self.bell()

    def measured(self) -> bytes:
        """Ask EL3 what EL2 is; return its answer: what protection is, then the digest."""
        self.machine.doorbell.send(bytes((MeasuredByte.ASK,)))
        self.world.wait(lambda: len(self.world.bytes) >= 65)
        said = self.bell()
        halves = [byte - MeasuredByte.NIBBLE for byte in said[1:]]
        return said[:1] + bytes(16 * high + low for high, low in zip(halves[::2], halves[1::2], strict=True))

    def bell(self) -> bytes:
        """What the monitor said over the secure UART since the last time."""
        self.world.hear()
        said, self.world.bytes = self.world.bytes, b""
        return said


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with booted(cpus=2) as machine:
        yield Guest(machine)


@pytest.fixture(autouse=True)
def protected(request: pytest.FixtureRequest) -> None:
    """Every test finds protection on, and nothing said over the UART."""
    if "guest" in request.fixturenames:
        guest = request.getfixturevalue("guest")
        assert guest.call(Call.VERSION) == Status.OK
        guest.bell()


# ---- starting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ram", "cpus", "online"), [(256 * MIB, 1, "0"), (258 * MIB, 4, "0-3"), (3 * GIB, 8, "0-7")]
)
def test_it_boots(ram: int, cpus: int, online: str) -> None:
    with booted(ram, cpus) as machine:
        guest = Guest(machine)
        assert guest.cpus() == online
        answer = guest.attack(f"smc {SMC_BASE + Call.LAYOUT:#x}")
        assert [answer[f"x{n}"] for n in range(4)] == [Status.OK, BASE, ram, guest.hidden]
        assert guest.attack(f"peek table {guest.hidden:#x}")["fault"] != 0


def test_a_guest_can_switch_its_machine_off() -> None:
    with booted(cpus=1) as machine:
        with pytest.raises(NormalWorldError, match="gone"):
            ask(machine, "poweroff")
        deadline = time.monotonic() + 30
        while machine.alive:
            assert time.monotonic() < deadline
            time.sleep(0.05)


# ---- CPUs -------------------------------------------------------------------------------------------


def test_cpus_go_off_and_on_again_in_either_mode(guest: Guest) -> None:
    for mode in (Call.RELAX, Call.VERSION):
        for _ in range(5):
            guest.online(1, 0)
            assert guest.smc(PSCI_AFFINITY, 1) == 1
            assert guest.call(mode) == Status.OK
            guest.online(1, 1)
            assert guest.smc(PSCI_AFFINITY, 1) == 0
    assert guest.cpus() == "0-1"


def test_a_cpu_that_was_off_meanwhile_is_protected(guest: Guest) -> None:
    assert guest.call(Call.RELAX) == Status.OK
    guest.online(0, 0)
    assert guest.call(Call.VERSION) == Status.OK
    guest.online(0, 1)
    guest.online(1, 0)  # so that it is this one that tries
    assert guest.attack(f"peek table {guest.hidden:#x}")["fault"] != 0
    guest.online(1, 1)


def test_the_secure_world_is_heard_while_the_first_cpu_is_off(guest: Guest) -> None:
    guest.online(0, 0)
    guest.world.attach()
    guest.world.die()
    guest.world.wait(lambda: len(guest.world._pending()) == 0)
    guest.online(0, 1)


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ((PSCI_VERSION,), 0x10000),
        ((PSCI_MIGRATION,), 2),
        ((PSCI_SUSPEND, 0), 0),
        ((PSCI_SUSPEND, 0x10000), INVALID_PARAMETERS),
        ((PSCI_FEATURES, PSCI_CPU_ON), 0),
        ((PSCI_FEATURES, 0x8000_0000), 0),  # there is a version of the calling convention to ask for
        ((PSCI_FEATURES, 0x8400_0012), NOT_SUPPORTED),
        ((PSCI_CPU_ON, 0, KERNEL), ALREADY_ON),
        ((PSCI_CPU_ON, 2, KERNEL), INVALID_PARAMETERS),
        ((PSCI_CPU_ON, 1 << 32, KERNEL), INVALID_PARAMETERS),
        ((PSCI_CPU_ON, 1, 0x0E00_0000), INVALID_ADDRESS),
        ((PSCI_CPU_ON, 1, KERNEL + 2), INVALID_ADDRESS),
        ((PSCI_CPU_ON, 1, BASE + GIB - 4096), INVALID_ADDRESS),
        ((PSCI_AFFINITY, 0, 0), 0),
        ((PSCI_AFFINITY, 0, 1), INVALID_PARAMETERS),
        ((PSCI_AFFINITY, ~0 & (1 << 64) - 1, 0), INVALID_PARAMETERS),
        ((0x8400_001F,), NOT_SUPPORTED),
        ((0xC200_0000,), NOT_SUPPORTED),  # what EL2 may ask of EL3, and nobody else
        ((0xC200_0002,), NOT_SUPPORTED),
    ],
)
@pytest.mark.parametrize("protection", [Call.VERSION, Call.RELAX], ids=["on", "off"])
def test_power_calls_are_answered_and_hostile_ones_refused(
    guest: Guest, protection: Call, call: tuple[int, ...], answer: int
) -> None:
    assert guest.call(protection) == Status.OK
    assert guest.smc(*call) == answer


@pytest.mark.parametrize("protection", [Call.VERSION, Call.RELAX], ids=["on", "off"])
@pytest.mark.parametrize("instruction", [ACKNOWLEDGE_GROUP_0, ENABLE_GROUP_0])
def test_the_secure_worlds_interrupts_are_not_the_guests_to_touch(
    guest: Guest, protection: Call, instruction: int
) -> None:
    own = guest.attack("own")["ipa"]
    guest.attack(f"poke direct {own:#x} {RETURN << 32 | instruction:#x}")
    assert guest.call(protection) == Status.OK
    assert guest.attack(f"execute code {own:#x}")["fault"] != 0  # the thread died of it, and nobody else
    assert guest.cpus() == "0-1"


# ---- protection off and on ------------------------------------------------------------------------------


def test_protection_goes_off_and_on_and_the_secure_world_hears_of_it(guest: Guest) -> None:
    for _ in range(5):
        assert guest.query() == bytes((Byte.ON,))
        assert guest.call(Call.RELAX) == Status.OK
        assert guest.attack(f"peek table {guest.hidden:#x}")["fault"] == 0
        assert guest.bell() == bytes((Byte.OFF,))
        assert guest.query() == bytes((Byte.OFF,))
        assert guest.call(Call.COUNTS) == Status.OK
        assert guest.attack(f"peek table {guest.hidden:#x}")["fault"] != 0
        assert guest.bell() == bytes((Byte.ON,))


def test_it_hears_of_one_change_for_each_time_it_asks(guest: Guest) -> None:
    guest.query()
    for call in (Call.RELAX, Call.VERSION, Call.RELAX, Call.VERSION):
        assert guest.call(call) == Status.OK
    assert guest.bell() == bytes((Byte.OFF,))


def test_the_secure_world_can_ask_whether_it_is_on(guest: Guest) -> None:
    for call, expected in ((Call.VERSION, Byte.ON), (Call.RELAX, Byte.OFF)):
        assert guest.call(call) == Status.OK
        assert guest.query() == bytes((expected,))


def test_a_secure_world_that_hears_nothing_does_not_stop_the_machine() -> None:
    """Whatever the normal world has to be told: what the UART's far end holds is little."""
    with booted(cpus=2) as machine:
        guest = Guest(machine)
        assert guest.attack("cost protect 300")["status"] == Status.OK
        guest.world.attach()
        guest.world._words[OFFSET_SLEEPING // 4] = 1  # it says that it sleeps, and never wakes up
        assert guest.attack("cost grant 2000 1")["status"] == Status.OK
        assert ask(machine, "ping") == {}
        assert guest.bell().count(Byte.EVENT) <= 1


def test_it_is_switched_while_all_cpus_work() -> None:
    with booted(cpus=4) as machine:
        guest = Guest(machine)
        jobs = [ask(machine, "start syscalls 100000000")["job"] for _ in range(4)]
        assert guest.attack("cost protect 20")["status"] in (Status.OK, Status.BUSY)
        for job in jobs:
            assert ask(machine, f"job {job}") == {"running": True}
            ask(machine, f"stop {job}")


def test_it_is_switched_while_the_doorbell_rings_and_calls_come_in() -> None:
    """A CPU that is gathered in the midst of EL2 goes on there as if nothing had been."""
    with booted(cpus=2) as machine:
        guest, stop = Guest(machine), threading.Event()

        def ring() -> None:
            while not stop.wait(0.0005):
                machine.doorbell.send(bytes((Byte.RING, Byte.QUERY)))
                guest.bell()

        ringing = threading.Thread(target=ring)
        ringing.start()
        try:
            came = guest.attack("fuzz smc 2000 7")  # among them RELAX
        finally:
            stop.set()
            ringing.join()
        assert came["fault"] == came["tampered"] == 0
        assert came["ok"] > 0


def test_a_patched_monitor_never_serves_again() -> None:
    with booted() as machine:
        guest = Guest(machine)
        guest.query()
        assert guest.call(Call.RELAX) == Status.OK
        guest.attack(f"poke table {guest.hidden + IMAGE:#x} 0x4141")
        for call in (Call.VERSION, Call.GRANT, Call.RELAX, Call.VERSION):
            assert guest.call(call) == Status.TAMPERED
        guest.attack(f"poke table {guest.hidden + IMAGE:#x} 0")
        assert guest.call(Call.VERSION) == Status.TAMPERED
        assert ask(machine, "ping") == {}  # the normal world lives on
        assert guest.bell() == bytes((Byte.OFF,))
        assert guest.measured()[0] == MeasuredByte.TAMPERED


def test_el3_says_of_which_image_el2_was_started_and_whether_it_protects(guest: Guest) -> None:
    images = images_of(512 * MIB, 2)
    el2 = reference_layers(images.firmware, images.el2)["el2"][:32]
    assert guest.measured() == bytes((MeasuredByte.ON,)) + el2
    assert guest.call(Call.RELAX) == Status.OK
    assert guest.measured() == bytes((MeasuredByte.OFF,)) + el2
    assert guest.call(Call.VERSION) == Status.OK
    assert guest.measured() == bytes((MeasuredByte.ON,)) + el2


def test_what_else_was_written_meanwhile_is_made_anew(guest: Guest) -> None:
    counts = guest.attack(f"smc {SMC_BASE + Call.COUNTS:#x}")
    assert guest.call(Call.RELAX) == Status.OK
    for offset in range(0x100000, 0x400000, 0x1000):  # states, tables
        guest.attack(f"poke table {guest.hidden + offset:#x} 0xffffffffffff")
    assert guest.attack(f"smc {SMC_BASE + Call.COUNTS:#x}") == counts
    assert guest.attack(f"peek table {guest.hidden:#x}")["fault"] != 0


# ---- the hash ---------------------------------------------------------------------------------------


class Digest(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_uint8 * 32),)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs `apt-get install gcc`")
def test_its_hash_is_sha_256(tmp_path: Path) -> None:
    monitor, library = Path(flexserve.__file__).parents[2] / "monitor", tmp_path / "sha256.so"
    flags = ("-shared", "-fPIC", "-O1", f"-I{monitor}", f"-I{monitor.parent / 'abi'}")
    subprocess.run(["gcc", *flags, monitor / "core/sha256.c", "-o", library], check=True)
    sha256 = ctypes.CDLL(str(library)).sha256
    sha256.restype = Digest
    sha256.argtypes = (ctypes.c_char_p, ctypes.c_uint64)
    data = bytes(index * 7 % 256 for index in range(1000))
    for length in (*range(130), 448, 512, 1000):
        assert bytes(sha256(data[:length], length).bytes) == hashlib.sha256(data[:length]).digest()
