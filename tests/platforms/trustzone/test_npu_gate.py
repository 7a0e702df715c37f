"""The NPU's gate on a machine with a normal world of one page: registers that are hidden and shown, a sandbox
that hostile code does not get out of, and protection that comes back while the NPU is at work.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare import BASE, CODE, CONTROL, HIDDEN, LOAD, RAM, STORE, WINDOW, Bare, assembled, bare

from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.abi import Call, Command, Event, Notice, NpuRegister, NpuState, Status

pytestmark = pytest.mark.vm

SERIAL, LIST, COMMANDS, TABLES = 7, 0x1234_5000, 99, 0x777_000
TICK = 2_000_000  # of the machine's counter: longer than what ends by itself takes
GOOD = "mov x0, #0\nret"
SEES_ITS_ARGUMENTS = """
    str x0, [sp, #-16]!
    ldr w9, [x0]
    stp x0, x1, [x0, #0x100]
    stp x2, x3, [x0, #0x110]
    stp x4, x5, [x0, #0x120]
    str w9, [x0, #0x130]
    ldr x9, [sp], #16
    sub x0, x0, x9
    ret
"""
ALTERS_REGISTERS = """
    mov x9, #1
    msr tpidr_el0, x9
    mov sp, x9
    msr nzcv, x9
    mov x0, #0
    ret
"""
HOSTILE = {
    "reads the OS's memory": "movz x1, #0x4030, lsl #16\nldr x0, [x1]",
    "writes the OS's memory": "movz x1, #0x4030, lsl #16\nstr x1, [x1]",
    "writes to itself": "adr x1, .\nstr x1, [x1]",
    "writes to the control page": "movz x1, #1, lsl #16\nstr x1, [x0, x1]",
    "reads the monitor": "movz x1, #0x10, lsl #16\nsub x1, x0, x1\nldr x0, [x1]",
    "reads above 4 GiB": "movz x1, #1, lsl #32\nldr x0, [x1]",
    "reads from the end": "mov x1, #-8\nldr x0, [x1]",
    "pushes below its stack": "sub x1, sp, #0x1000\nstr x1, [x1, #-16]",
    "pops above its stack": "ldr x1, [sp]",
    "runs the OS's memory": "movz x1, #0x4020, lsl #16\nbr x1",
    "runs registers": "br x0",
    "runs its stack": "sub x1, sp, #64\nbr x1",
    "runs what is far away": "movz x1, #1, lsl #32\nbr x1",
    "calls a kernel": "svc #0",
    "calls the monitor": "hvc #0",
    "calls EL3": "smc #0",
    "returns from an exception": "eret",
    "is not code": ".word 0",
    "stops for a debugger": "brk #1",
    "reads a system register": "mrs x0, sctlr_el1",
    "masks interrupts": "msr daifset, #2",
    "uses floating point": "fmov d0, xzr",
    "uses vectors": "movi v0.16b, #1",
    "loops for ever": "b .",
    "recurses for ever": "str x30, [sp, #-16]!\nbl . - 4",
}
# What the OS changes in a register (x0: as it is), what is run then, and what must come of it.
OF_THE_OS = {
    "sctlr_el1": (  # EL0 has its bytes the other way round
        "orr x0, x0, #1 << 24",
        "mov w9, #1\nstr w9, [sp, #-16]\nldrb w0, [sp, #-16]\nsub x0, x0, #1\nret",
        Status.OK,
    ),
    "tcr_el1": (  # the first byte of an address does not count
        "orr x0, x0, #1 << 37",
        "orr x1, x0, #1 << 56\nldr w9, [x1]\nmov x0, #0\nret",
        Status.DENIED,
    ),
    "mdscr_el1": (  # a breakpoint at its second instruction
        f"ldr x1, ={CONTROL + 0x1000 + 4:#x}\nmsr dbgbvr0_el1, x1\nmov x1, #0x1e5\nmsr dbgbcr0_el1, x1\n"
        "msr oslar_el1, xzr\norr x0, x0, #1 << 15",
        GOOD,
        Status.OK,
    ),
    "cntkctl_el1": ("orr x0, x0, #3", "mrs x9, cntvct_el0\nmov x0, #0\nret", Status.DENIED),
    "pmuserenr_el0": ("orr x0, x0, #1", "mrs x9, pmccntr_el0\nmov x0, #0\nret", Status.DENIED),
    "cpacr_el1": ("orr x0, x0, #3 << 20", "fmov d0, xzr\nmov x0, #0\nret", Status.DENIED),
    "tpidrro_el0": ("mov x0, #5", "mrs x0, tpidrro_el0\nret", Status.OK),
    "tpidr_el0": ("mov x0, #5", "mrs x0, tpidr_el0\nret", Status.OK),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bare")


@pytest.fixture(scope="module")
def machine(folder: Path) -> Iterator[Bare]:
    with bare(folder) as it:
        assert it.call(Call.VERSION) == (Status.OK, abi.VERSION)
        yield it


@pytest.fixture
def it(machine: Bare) -> Iterator[Bare]:
    """The machine, with a secure world attached; afterwards the NPU is the OS's again."""
    machine.command(Command.ATTACH, 1)
    machine.settle()
    machine.events()
    yield machine
    machine.device.resets = True
    machine.command(Command.GONE, 1)
    machine.settle()
    machine.events()
    assert machine.npu() == NpuState.NORMAL
    assert machine.reaches(WINDOW)


def want(it: Bare) -> None:
    it.command(Command.NPU_WANT, SERIAL)
    assert it.poll() == Notice.NPU_WANTED


def grant(it: Bare, code: bytes) -> Status:
    it.memory[CODE - BASE : CODE - BASE + len(code)] = code
    return it.call(Call.NPU_GRANT, CODE, len(code))[0]


def enter(it: Bare, code: bytes) -> None:
    want(it)
    assert grant(it, code) == Status.OK
    it.settle()
    assert it.events() == [(Event.NPU_GRANTED, SERIAL, 0)]


def drive(it: Bare, tick: int = TICK) -> tuple[Status, int]:
    """Return what came of it, and how often it was interrupted."""
    it.command(Command.NPU_DRIVE, LIST | COMMANDS << 32, TABLES, SERIAL)
    interrupted = 0
    while it.poll(tick) == Notice.MORE:
        interrupted += 1
    ((kind, serial, status),) = it.events()
    assert (kind, serial) == (Event.DONE, SERIAL)
    return Status(status), interrupted


# ---- whose it is --------------------------------------------------------------------------------------


def test_the_os_reaches_the_registers_and_nothing_else_of_hidden_memory(it: Bare) -> None:
    assert it.npu() == NpuState.NORMAL
    assert it.reaches(WINDOW)
    assert it.reaches(WINDOW + abi.NPU_WINDOW_BYTES - 8)
    for address in (HIDDEN, WINDOW - 8, CONTROL, CONTROL + 0x1000, BASE + RAM - 8):
        assert not it.reaches(address)


def test_registers_are_hidden_and_shown_and_reach_the_other_world_as_zeros(it: Bare, folder: Path) -> None:
    code = assembled(GOOD, folder)
    for _ in range(3):
        normal = it.device.root
        it.wish(STORE, 0, WINDOW + NpuRegister.DATA_ADDR, 0x0123_4567)
        it.device.resets = False
        want(it)
        assert grant(it, code) == Status.OK
        assert it.npu() == NpuState.ENTERING
        assert it.poll() == Notice.WAIT
        assert it.device.root == 0
        assert not it.reaches(WINDOW)
        assert it.wish(STORE, 0, WINDOW + NpuRegister.OP_EN, 1)[0] != 0
        it.device.resets = True
        it.settle()
        assert it.npu() == NpuState.SECURE
        assert it.device.root not in (0, normal)
        assert it.digest == hashlib.sha256(code).digest()
        window = it.memory[WINDOW - BASE : WINDOW - BASE + abi.NPU_WINDOW_BYTES]
        assert window[:8] == struct.pack("<2I", abi.NPU_VERSION, abi.NPU_VERSION_NUM)
        assert not any(window[8:])
        assert not it.reaches(WINDOW)
        at = WINDOW - BASE + NpuRegister.DATA_ADDR
        it.memory[at : at + 8] = b"a secret"
        it.command(Command.NPU_RELEASE, SERIAL)
        it.settle()
        assert it.npu() == NpuState.NORMAL
        assert it.device.root == normal
        assert it.wish(LOAD, 0, WINDOW + NpuRegister.DATA_ADDR)[:2] == (0, 0)


def test_a_machine_without_an_npu_hides_its_registers(folder: Path) -> None:
    with bare(folder, npus=0) as it:
        assert it.npu() == NpuState.ABSENT
        assert not it.reaches(WINDOW)


def test_a_page_is_granted_only_once_an_npu_at_work_forgot_it(it: Bare) -> None:
    flushes = it.device.flushes
    assert it.call(Call.GRANT, CODE, 1)[0] == Status.OK
    assert it.call(Call.RETURN, CODE, 1)[0] == Status.OK
    assert it.device.flushes == flushes
    it.device.say(abi.NPU_OFFSET_BUSY, 1)
    assert it.call(Call.GRANT, CODE, 1)[0] == Status.OK
    assert it.device.flushes == flushes + 1
    it.device.say(abi.NPU_OFFSET_BUSY, 0)
    assert it.call(Call.RETURN, CODE, 1)[0] == Status.OK
    it.events()


# ---- the sandbox --------------------------------------------------------------------------------------


def test_the_code_gets_registers_a_stack_and_its_arguments(it: Bare, folder: Path) -> None:
    enter(it, assembled(SEES_ITS_ARGUMENTS, folder))
    assert drive(it)[0] == Status.OK
    seen = struct.unpack_from("<6QI", it.memory, WINDOW - BASE + 0x100)
    assert seen == (WINDOW, abi.NPU_START, LIST, COMMANDS, TABLES, SERIAL, abi.NPU_VERSION)


def test_what_it_returns_is_told(it: Bare, folder: Path) -> None:
    enter(it, assembled("mov x0, #5\nret", folder))
    assert drive(it)[0] == Status.BUSY


def test_registers_of_the_normal_world_are_as_before(it: Bare, folder: Path) -> None:
    enter(it, assembled(ALTERS_REGISTERS, folder))
    assert drive(it)[0] == Status.OK  # and call() looked


@pytest.mark.parametrize("register", OF_THE_OS)
def test_the_code_runs_under_no_register_of_the_os(it: Bare, folder: Path, register: str) -> None:
    change, code, status = OF_THE_OS[register]
    read, write = f"mrs x0, {register}\n", f"msr {register}, x0\nisb\n"
    before = it.run(assembled(f"{read}ret", folder))
    it.run(assembled(f"{read}{change}\n{write}ret", folder))
    changed = it.run(assembled(f"{read}ret", folder))
    assert changed != before
    enter(it, assembled(code, folder))
    assert drive(it)[0] == status
    if register != "tpidr_el0":  # which call() uses itself
        assert it.run(assembled(f"{read}ret", folder)) == changed
    it.run(assembled(f"{write}ret", folder), before)


def test_code_that_is_interrupted_goes_on(it: Bare, folder: Path) -> None:
    enter(it, assembled("movz x1, #0x40, lsl #16\n1: subs x1, x1, #1\nb.ne 1b\nmov x0, x1\nret", folder))
    status, interrupted = drive(it, tick=30_000)
    assert status in (Status.OK, Status.DENIED)  # the latter on a host so slow that it looked endless
    assert interrupted > 0


@pytest.mark.parametrize("code", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_code_is_ended_and_the_machine_lives_on(it: Bare, folder: Path, code: str) -> None:
    enter(it, assembled(f"{code}\nmov x0, #0\nret\n", folder))
    it.bell.send(b"?")  # something for EL3 to do meanwhile
    assert drive(it)[0] == Status.DENIED
    assert it.call(Call.VERSION) == (Status.OK, abi.VERSION)
    assert it.npu() == NpuState.SECURE


def test_the_stack_is_clean_each_time(it: Bare, folder: Path) -> None:
    enter(
        it, assembled("ldr x9, [sp, #-64]\nstr x0, [sp, #-64]\nstr x9, [x0, #0x100]\nmov x0, #0\nret", folder)
    )
    for _ in range(2):
        assert drive(it)[0] == Status.OK
        assert not any(it.memory[WINDOW - BASE + 0x100 : WINDOW - BASE + 0x108])


def test_the_os_changes_its_code_in_vain(it: Bare, folder: Path) -> None:
    good = assembled(GOOD, folder)
    enter(it, good)
    it.memory[CODE - BASE : CODE - BASE + len(good)] = bytes(len(good))
    assert drive(it)[0] == Status.OK
    assert it.digest == hashlib.sha256(good).digest()


# ---- protection off and on ------------------------------------------------------------------------------


def test_when_protection_returns_the_npu_is_confined_first(machine: Bare) -> None:
    root = machine.device.root
    assert machine.call(Call.RELAX)[0] == Status.OK
    flushes = machine.device.flushes
    machine.wish(STORE, 0, CONTROL + abi.NPU_OFFSET_ROOT, CODE)
    assert machine.device.root == CODE
    machine.wish(STORE, 0, CONTROL + abi.NPU_OFFSET_FLUSH, machine.device.word(abi.NPU_OFFSET_FLUSH_DONE) + 1)
    assert machine.call(Call.VERSION)[0] == Status.OK
    assert machine.device.flushes >= flushes + 2  # whatever it had asked for itself
    assert machine.device.root == root
    assert not machine.reaches(CONTROL)


def test_protection_does_not_return_without_an_answer_of_the_npu(folder: Path) -> None:
    with bare(folder) as it:
        assert it.call(Call.RELAX)[0] == Status.OK
        it.device.answers = False
        assert it.call(Call.VERSION)[0] == Status.TAMPERED
        it.device.answers = True
        assert it.call(Call.VERSION)[0] == Status.TAMPERED
        assert it.reaches(CONTROL)  # the normal world lives on
