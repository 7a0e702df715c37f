"""The OS lends a CPU to the secure world: what each of them finds, and what neither can do to the other.

A secure OS of one page (payload.S) under a normal world of one page, and under a real kernel with its driver.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bare import BASE, CALL, RAM, RUN, Bare, bare
from machines import SecureWorld, ask, booted
from secure_payload import (
    FUNCTION,
    OS,
    PAYLOAD,
    SECURE_RAM,
    SECURE_RAM_END,
    Block,
    Wish,
    assembled,
    images,
    payload,
)

from flexserve.emulator import boot_rom
from flexserve.emulator.secure_os import firmware_with
from flexserve.errors import NormalWorldError
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.abi import Call, MeasuredByte, RunAnswer, Status
from flexserve.units import MIB

pytestmark = pytest.mark.vm

TICK = 100_000  # of the counter: 1.6 ms
TRIES = 100  # so often it may be interrupted at once: its host had other things to do
CPUS = 2
SYSTEM_OFF = 0x8400_0008
FIRST_IMAGES = (0x0E20_0000, 0x0E22_0000)  # where the payload puts what it finds in its registers
REGISTERS = 12 * MIB  # in the bare machine's RAM: the normal world's images of registers
DEBUG = "/sys/kernel/debug/flexmem"

# The normal world's registers are put aside, replaced by an image, looked at, again after RUN, and put back.
NORMAL_WORLD = f"""
#define RUN {abi.SMC_BASE + abi.CALL_RUN:#x}
	.arch_extension simd
	mov	x2, #3 << 20
	msr	cpacr_el1, x2
	isb
	add	x0, x0, #0x4000
	dump_all
	sub	x0, x0, #0x3000
	load_all
	add	x0, x0, #0x1000
	dump_all
	ldr	x1, ={TICK}
	msr	cntv_tval_el0, x1
	mov	x1, #1
	msr	cntv_ctl_el0, x1
	isb
	ldp	x1, x2, [x0, #8]
	mov	x28, x0
	ldr	w0, =RUN
	smc	#0
	msr	cntv_ctl_el0, xzr
	add	x28, x28, #0x1000
	str	x0, [x28]
	mov	x0, x28
	dump_all
	add	x0, x0, #0x1000
	load_all
	ret
	.ltorg
"""


@pytest.fixture(scope="module")
def secure_os(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return payload(tmp_path_factory.mktemp("payload"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, secure_os: bytes) -> Iterator[Bare]:
    """A machine with a page of normal world, and a secure one that is idle when a test begins."""
    with bare(tmp_path_factory.mktemp("bare"), secure_os=secure_os) as machine:
        yield machine


@pytest.fixture(params=[Call.VERSION, Call.RELAX], ids=["protected", "relaxed"])
def lent(request: pytest.FixtureRequest, small: Bare) -> Iterator[Bare]:
    """The same, once with protection on and once with it off."""
    assert small.call(request.param)[0] == Status.OK
    block_of(small).wish(Wish.IDLE)
    yield small
    block_of(small).wish(Wish.IDLE)
    assert small.lend() == (RunAnswer.IDLE, 0)


def block_of(machine: Bare) -> Block:
    return Block(machine.memory, 0)


# ---- one CPU, and a normal world that does only what a test says -----------------------------------


def test_an_idle_secure_world_gives_the_cpu_back_and_says_until_when(lent: Bare) -> None:
    block_of(lent).wish(Wish.IDLE, 123_456)
    assert lent.lend() == (RunAnswer.IDLE, 123_456)
    assert lent.run_call(*[(1 << 64) - 1] * 7) == (Status.OK, (RunAnswer.IDLE, 123_456))


def test_a_busy_one_is_interrupted_and_goes_on_where_it_was(lent: Bare) -> None:
    block = block_of(lent)
    block.wish(Wish.BUSY, TICK)
    for _ in range(3):
        before = block.beats
        for _ in range(TRIES):
            assert lent.lend(tick=TICK) == (RunAnswer.INTERRUPTED, 0)
            if block.beats > before:
                break
        assert block.beats > before


def test_who_was_interrupted_hears_of_the_next_run_before_it_is_idle(lent: Bare) -> None:
    block = block_of(lent)
    block.wish(Wish.BUSY, TICK)
    assert lent.lend(tick=TICK) == (RunAnswer.INTERRUPTED, 0)
    block.wish(Wish.CALL, FUNCTION["yield"], RunAnswer.IDLE)  # as it would have, if it had been on its way
    assert lent.run_call(0x1234, 5)[1][0] == RunAnswer.IDLE
    assert block.wished is Wish.IDLE  # and that was looked at
    assert block.got[:3] == (Status.OK, 0x1234, 5)


def test_neither_world_finds_a_register_other_than_it_left_it(lent: Bare, tmp_path: Path) -> None:
    at, block, (ours, theirs) = REGISTERS, block_of(lent), images()
    code = assembled(OS.macros() + NORMAL_WORLD, tmp_path)
    lent.memory[at + 0x8000 : at + 0x8000 + len(code)] = code
    lent.memory[at + 0x1000 : at + 0x1000 + len(ours)] = ours
    block.load(theirs)
    block.go(False)
    block.wish(Wish.CANARIES)
    for _ in range(2):  # interrupted, at the latest now with all of it in registers
        lent.wish(RUN, BASE + at, BASE + at + 0x8000)
    before, after = (OS.read(lent.memory[at + n : at + n + OS.size]) for n in (0x2000, 0x3000))
    answer = {"x0": Status.OK, "x1": RunAnswer.INTERRUPTED, "x2": 0, "x3": 0, "x4": 0}
    assert {name: after[name] for name in answer} == answer
    kept = before.keys() - answer.keys() - {"x28"}  # by which it finds its images
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    block.go(True)
    assert lent.lend() == (RunAnswer.IDLE, 0)
    began, ended = block.image(1), block.image(2)
    held = began.keys() - {"x0", "x1"}  # by which it finds its images and waits
    assert {name: ended[name] for name in held} == {name: began[name] for name in held}
    same = {name for name in kept & held if before[name] == began[name]}
    assert same <= {"afsr0_el1", "afsr1_el1", "amair_el1", "cpacr_el1"}
    assert_was_loaded(before, OS.loaded)
    assert_was_loaded(began, PAYLOAD.loaded)


def assert_was_loaded(found: dict[str, int], names: Iterable[str]) -> None:
    """What was loaded was there, in all registers that can hold something."""
    empty = {name for name in (*names, "q0", "q31", "fpcr", "fpsr") if found[name] == 0}
    assert empty <= {"afsr0_el1", "afsr1_el1", "amair_el1"}, "this CPU has but these not"


def test_it_is_entered_with_nothing_of_the_os_in_its_registers(small: Bare) -> None:
    block_of(small).wish(Wish.IDLE)
    small.lend()
    first = block_of(small).image(3)
    assert first.pop("sctlr_el1") == 0x30D0_0800  # no MMU
    assert {name for name, value in first.items() if value} <= {"x0"}  # which is not in the image


def test_protection_is_told_with_the_digest_of_el2s_image(small: Bare) -> None:
    digests = set()
    for call, expected in ((Call.VERSION, MeasuredByte.ON), (Call.RELAX, MeasuredByte.OFF)):
        assert small.call(call)[0] == Status.OK
        block_of(small).wish(Wish.CALL, FUNCTION["protection"])
        small.lend()
        status, protection, *digest = block_of(small).got
        assert (status, protection) == (Status.OK, expected)
        digests.add(tuple(digest))
    assert len(digests) == 1
    assert all(digests.pop())


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ((FUNCTION["yield"], RunAnswer.INTERRUPTED), Status.INVALID),
        ((FUNCTION["yield"], 0), Status.INVALID),
        ((SYSTEM_OFF, 0), Status.UNKNOWN),
        ((abi.SMC_BASE + Call.VERSION, 0), Status.UNKNOWN),
        ((0xC200_0000, 0), Status.UNKNOWN),  # what EL2 asks for
        ((FUNCTION["doorbell"], 0), Status.OK),
    ],
)
def test_what_the_secure_os_asks_for_is_answered(lent: Bare, call: tuple[int, int], answer: Status) -> None:
    block_of(lent).wish(Wish.CALL, *call)
    lent.lend()
    assert block_of(lent).got[0] == answer & (1 << 64) - 1


def test_it_runs_no_memory_of_the_normal_world(lent: Bare) -> None:
    block = block_of(lent)
    block.wish(Wish.FETCH, SECURE_RAM + 0x130000)
    lent.lend()
    assert block.got[0] == 0
    block.wish(Wish.FETCH, block.address + 0x5000)
    lent.lend()
    assert block.got[0] >> 26 == 0x21  # a fetch of its own level
    assert block.got[0] & 0x3C == 0x0C  # was not permitted


def test_secure_ram_is_empty_at_each_start_and_at_the_end(tmp_path: Path, secure_os: bytes) -> None:
    with bare(tmp_path, resets=True, secure_os=secure_os) as machine:
        block = block_of(machine)
        for _ in range(2):
            for begin, end in ((SECURE_RAM, FIRST_IMAGES[0]), (FIRST_IMAGES[1], SECURE_RAM_END)):
                block.wish(Wish.SCAN, begin, end)
                machine.lend()
                assert block.got[0] == 0
            block.wish(Wish.PAINT, secrets.randbits(64) | 1)
            machine.lend()
            block.wish(Wish.SCAN, SECURE_RAM, SECURE_RAM_END)
            machine.lend()
            assert block.got[0] == (SECURE_RAM_END - SECURE_RAM) // 8
            machine.reset()


def test_when_it_has_ended_it_is_never_entered_again(tmp_path: Path, secure_os: bytes) -> None:
    with bare(tmp_path, secure_os=secure_os) as machine:
        block_of(machine).wish(Wish.FINISH, 77)
        for mode in (Call.VERSION, Call.RELAX):
            assert machine.call(mode)[0] == Status.OK
            assert machine.lend() == (RunAnswer.ENDED, 77)
        machine.last_wish(CALL, SYSTEM_OFF, resets=False)


@pytest.mark.parametrize("register", range(3), ids=["PMU", "debug", "GIC"])
def test_what_is_not_the_secure_oss_to_touch_ends_the_machine(
    tmp_path: Path, secure_os: bytes, register: int
) -> None:
    with bare(tmp_path, secure_os=secure_os) as machine:
        block_of(machine).wish(Wish.TOUCH, register)
        with pytest.raises(AssertionError, match="an exception that cannot be"):
            machine.lend()


def test_without_a_secure_os_there_is_no_such_call(tmp_path: Path) -> None:
    with bare(tmp_path) as machine:
        for mode in (Call.VERSION, Call.RELAX):
            assert machine.call(mode)[0] == Status.OK
            assert machine.run_call(1, 2, 3) == (Status.UNKNOWN, (0, 0))
        assert machine.reaches(BASE + RAM - abi.HIDDEN_BYTES)  # RUN switches nothing on


# ---- a kernel that lends both its CPUs --------------------------------------------------------------


class Lending:
    """A machine whose driver lends CPUs to the payload, and what each CPU's does."""

    def __init__(self, machine: Any) -> None:
        self.machine, self.world = machine, SecureWorld(machine)
        self.blocks = [Block(self.world.memory, cpu) for cpu in range(CPUS)]
        ask(machine, "write /sys/module/flexmem/parameters/idle_ms 0")
        ask(machine, "load flexattack")

    def wish(self, *wishes: Wish, argument: int = 0) -> None:
        """Have all CPUs' payloads do something, from now on."""
        for block, wish in zip(self.blocks, wishes, strict=True):
            block.wish(wish, argument)
        self.world.ring()  # the driver POLLs, and so lends idle ones again

    def attack(self, words: str) -> dict[str, Any]:
        return ask(self.machine, f"attack {words}")

    def status(self, call: int) -> int:
        return int(self.attack(f"smc {abi.SMC_BASE + call:#x}")["x0"])

    def driver(self, name: str) -> int:
        return int(ask(self.machine, "flexmem")[name])

    def online(self, cpu: int, state: int) -> None:
        ask(self.machine, f"write /sys/devices/system/cpu/cpu{cpu}/online {state}")

    def interrupts(self) -> list[int]:
        """How often each CPU's timer has interrupted the kernel."""
        text = ask(self.machine, "read /proc/interrupts")["text"]
        line = re.search(r".*arch_timer.*", text)
        assert line
        return [int(word) for word in line[0].split()[1 : CPUS + 1]]

    def beat(self, *cpus: int) -> bool:
        """Whether the payloads of these CPUs go round, within a moment."""
        before, deadline = [self.blocks[cpu].beats for cpu in cpus], time.monotonic() + 20
        while time.monotonic() < deadline:
            if all(self.blocks[cpu].beats > then for cpu, then in zip(cpus, before, strict=True)):
                return True
            time.sleep(0.002)
        return False


def images_with(images: Any, secure_os: bytes, folder: Path) -> Any:
    """Return images whose firmware has a secure OS, signed as the builder signs it."""
    firmware = folder / "fw.bin"
    firmware.write_bytes(firmware_with(images.firmware.read_bytes(), secure_os, b""))
    boot_rom.sign(firmware, images.firmware_key)
    return dataclasses.replace(images, firmware=firmware)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory, secure_os: bytes) -> Iterator[Lending]:
    folder = tmp_path_factory.mktemp("kernel")
    with booted(cpus=CPUS, alter=lambda images: images_with(images, secure_os, folder)) as machine:
        yield Lending(machine)


@pytest.fixture
def busy(kernel: Lending) -> Iterator[Lending]:
    """Both CPUs are lent to payloads that never give them back."""
    kernel.wish(Wish.BUSY, Wish.BUSY, argument=TICK)
    assert kernel.beat(0, 1)
    yield kernel
    kernel.wish(Wish.IDLE, Wish.IDLE)


def test_both_cpus_compute_for_the_secure_world_at_once(busy: Lending) -> None:
    before = busy.driver("lent_ns")
    assert busy.beat(0, 1)
    assert busy.driver("lent_ns") > before
    assert busy.driver("interrupted") > 0


def test_a_busy_secure_world_keeps_the_kernel_from_no_interrupt(busy: Lending) -> None:
    before = busy.interrupts()
    for _ in range(20):
        assert ask(busy.machine, "ping") == {}
    time.sleep(0.2)
    assert all(now > then for now, then in zip(busy.interrupts(), before, strict=True))


def test_protection_goes_off_and_on_while_the_secure_world_computes(busy: Lending) -> None:
    for call in (Call.RELAX, Call.VERSION) * 5:
        assert busy.status(call) == Status.OK
        assert busy.beat(0, 1)
    hidden = BASE + busy.machine.ram_bytes - abi.HIDDEN_BYTES
    assert busy.attack(f"peek table {hidden:#x}")["fault"] != 0


def test_a_cpu_that_was_off_goes_on_with_its_secure_world(busy: Lending) -> None:
    busy.online(1, 0)
    before = busy.blocks[1].beats
    assert busy.beat(0)
    assert busy.blocks[1].beats == before
    busy.online(1, 1)
    assert busy.beat(1)
    assert busy.blocks[1].beats - before < 1 << 32, "it began anew, or in the midst of nothing"


def test_an_idle_secure_world_is_entered_again_in_time_or_when_told_something(kernel: Lending) -> None:
    kernel.wish(Wish.IDLE, Wish.IDLE)
    kernel.world.wait(lambda: kernel.driver("idles") > 0)
    kernel.wish(Wish.IDLE, Wish.IDLE, argument=1_000_000)  # ns
    before = kernel.driver("idles")
    kernel.world.wait(lambda: kernel.driver("idles") > before + 100)
    kernel.wish(Wish.BUSY, Wish.IDLE)
    assert kernel.beat(0)
    kernel.wish(Wish.IDLE, Wish.IDLE)


def test_a_hostile_kernel_lends_beside_its_driver(busy: Lending) -> None:
    for arguments in ("", "-1 -1 -1 -1 -1 -1 -1", "0x0e100000 0x400000 3"):
        answer = busy.attack(f"smc {abi.SMC_BASE + abi.CALL_RUN:#x} {arguments}")
        assert (answer["x0"], answer["x1"]) == (Status.OK, RunAnswer.INTERRUPTED)
    assert busy.attack("fuzz smc 300 11")["fault"] == 0
    assert busy.beat(0, 1)


def test_the_driver_stops_lending_when_a_test_says_so(busy: Lending) -> None:
    ask(busy.machine, f"write {DEBUG}/lend 0")
    before = busy.driver("runs")
    assert busy.driver("lending") == 0
    assert busy.driver("runs") - before <= CPUS
    ask(busy.machine, f"write {DEBUG}/lend 1")
    assert busy.beat(0, 1)


def test_a_machine_that_is_switched_off_has_its_secure_world_ended_first(
    tmp_path: Path, secure_os: bytes
) -> None:
    with booted(cpus=CPUS, alter=lambda images: images_with(images, secure_os, tmp_path)) as machine:
        it = Lending(machine)
        it.wish(Wish.BUSY, Wish.BUSY)
        assert it.beat(0, 1)
        with pytest.raises(NormalWorldError, match="gone"):
            ask(machine, "poweroff")
        deadline = time.monotonic() + 30
        while machine.alive:
            assert time.monotonic() < deadline
            time.sleep(0.05)
