"""The secure OS under the real monitor: with a normal world of one page, and with a stock kernel."""

from __future__ import annotations

import contextlib
import mmap
import secrets
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from bare import BASE, CALL, PAGE, Bare, bare
from machines import ask, booted

import flexserve
from flexserve.emulator import tools
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.abi import Call, Notice, RunAnswer, Status
from flexserve.testing.trustzone import eventually
from flexserve.units import MIB

pytestmark = pytest.mark.vm

SOURCES = Path(flexserve.__file__).parents[2]
CROSS = "aarch64-linux-gnu-"
LENT = 64 * MIB  # from here on the bare machine's RAM is handed over
RING = 32 * MIB
TICK = 1_000_000  # of the counter, until a busy secure world is interrupted: 16 ms
TURNS = 3000
EXITED = 1  # ENDING_EXIT, of status 0
Compile = Callable[[str], Path]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Return what compiles a program of secure-os/tests/boot. Skips where there is no compiler."""
    if any(shutil.which(tool) is None for tool in ("make", f"{CROSS}gcc")):
        pytest.skip("apt-get install make gcc-aarch64-linux-gnu libc6-dev-arm64-cross")
    folder = tmp_path_factory.mktemp("programs")

    def compile_program(name: str) -> Path:
        source = SOURCES / "secure-os/tests/boot" / f"{name}.c"
        flags = ("-O1", "-static", "-pthread", "-I", SOURCES / "abi")
        tools.run(f"{CROSS}gcc", *flags, source, "-o", folder / name)
        return folder / name

    return compile_program


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory, compiled: Compile) -> bytes:
    """The secure OS's image."""
    folder = tmp_path_factory.mktemp("secure-os")
    for name in ("abi", "monitor", "secure-os"):
        shutil.copytree(SOURCES / name, folder / name, ignore=shutil.ignore_patterns("build"))
    tools.run("make", "-C", folder / "secure-os", "image", f"CROSS_COMPILE={CROSS}")
    return (folder / "secure-os/build/secure_os.bin").read_bytes()


def running(folder: Path, kernel: bytes, program: Path) -> contextlib.AbstractContextManager[Bare]:
    """Return a machine with a normal world of one page, and a program at S-EL0."""
    return bare(folder, secure_os=kernel, application=program.read_bytes())


class Driver:
    """What a driver does, for one CPU: it lends it, and hands over memory that is asked for."""

    def __init__(self, machine: Bare, ring: tuple[int, int] = (0, 0)) -> None:
        self._machine, self._ring, self.next = machine, ring, BASE + LENT
        self.taken = 0  # pages

    def lend(self) -> tuple[int, int]:
        """Lend the CPU once; return why it is back, and what else was said."""
        status, answer = self._machine.run_call(*self._ring, tick=TICK)
        assert status == Status.OK
        return answer

    def serve(self) -> None:
        """Do what the monitor's notices ask for."""
        while True:
            kind, *x = self._machine.wish(CALL, abi.SMC_BASE + Call.POLL)[1:5]
            if kind == Notice.NONE:
                return
            if kind == Notice.WANT:
                self._grant(serial=x[0], pages=x[1])
            elif kind == Notice.OFFER:
                assert self._machine.call(Call.TAKE, x[0], x[1])[0] == Status.OK
                self.taken += x[1]

    def lend_until(self, reached: Callable[[], bool]) -> None:
        """Lend until something is so."""
        for _ in range(TURNS):
            if reached():
                return
            self.lend()
        raise AssertionError("it never comes to that")

    def run_to_the_end(self) -> int:
        """Lend and serve until the application has ended; return why."""
        for _ in range(TURNS):
            kind, argument = self.lend()
            if kind == RunAnswer.ENDED:
                return argument
            self.serve()
        raise AssertionError("it never ends")

    def _grant(self, serial: int, pages: int) -> None:
        for at in range(0, pages, abi.CALL_PAGES_MAX):
            count = min(abi.CALL_PAGES_MAX, pages - at)
            assert self._machine.call(Call.GRANT, self.next, count)[0] == Status.OK
            self.next += count * PAGE
        assert self._machine.call(Call.ANSWER, serial, pages)[0] == Status.OK


@pytest.mark.parametrize("before", [Call.VERSION, Call.RELAX], ids=["protected", "relaxed"])
def test_memory_of_the_os_is_asked_for_used_and_given_back(
    tmp_path: Path, kernel: bytes, compiled: Compile, before: Call
) -> None:
    with running(tmp_path, kernel, compiled("handover")) as machine:
        assert machine.call(before)[0] == Status.OK
        driver = Driver(machine)
        assert driver.run_to_the_end() == EXITED
        driver.serve()
        assert driver.taken == 600
        assert machine.memory[LENT : LENT + 600 * PAGE] == bytes(600 * PAGE)


def test_a_program_that_faults_is_ended(tmp_path: Path, kernel: bytes, compiled: Compile) -> None:
    with running(tmp_path, kernel, compiled("fault")) as machine:
        assert Driver(machine).run_to_the_end() & 0xFF == 2  # ENDING_FAULT


def test_messages_pass_through_memory_of_the_os(tmp_path: Path, kernel: bytes, compiled: Compile) -> None:
    with running(tmp_path, kernel, compiled("ring")) as machine:
        driver = Driver(machine, ring=((BASE + RING) // PAGE, 2))
        words = memoryview(machine.memory)[RING : RING + 16].cast("Q")
        words[0] = first = secrets.randbits(60) | 1
        driver.lend_until(lambda: words[1] == 2 * first)
        words[0] = 0
        assert driver.run_to_the_end() == EXITED | 2 << 8
        words.release()


def test_a_stock_kernel_lends_two_cores_and_its_memory(compiled: Compile) -> None:
    with booted(application=compiled("handover")) as machine:

        def said(text: str) -> bool:
            return any(f"handover: {text}" in line for line in machine.console())

        assert eventually(lambda: said("two cores computed the same")), machine.last_words()
        assert eventually(lambda: said("600 pages were used and given back")), machine.last_words()
        assert eventually(lambda: machine.monitor().pages["SECURE"] == 0)
        state = ask(machine, "flexmem")
        ring = mmap.mmap(machine.ram_fd, PAGE, offset=state["ring_page"] * PAGE - BASE)
        with ring, memoryview(ring).cast("Q") as words:
            words[0] = first = secrets.randbits(60) | 1
            ask(machine, "write /sys/kernel/debug/flexmem/said 1")
            assert eventually(lambda: words[1] == 2 * first)
        assert eventually(lambda: ask(machine, "flexmem")["ended"] == 1)
        assert sum(machine.monitor().pages.values()) == machine.ram_bytes


def test_seed_and_secret_lie_where_the_starter_puts_them(kernel: bytes) -> None:
    magic, entry, size = struct.unpack_from("<8s2Q", kernel)
    assert (magic, size) == (b"FLEXSEOS", len(kernel))
    assert not any(kernel[24:entry])
    assert entry >= 24 + 2 * 32
