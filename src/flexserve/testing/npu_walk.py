"""Both worlds at one NPU, at random: python -m flexserve.testing.npu_walk --steps 100000 [--booted]

The secure world asks, computes, waits or not, gives back, and its memory comes and goes meanwhile. The
OS lends or does not, wants its NPU back, and computes with it itself; the device stalls. Whatever the
order: each product is right to the last bit or said to be lost, nothing hangs, the NPU reaches exactly the
pages of the world that has it, and nothing of one world is left on it, or in a page, for the other.

The OS is the one in Python (flexserve.testing.trustzone_npu) or, --booted, the Linux of a real machine.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from flexserve.emulator.build import Options
from flexserve.emulator.machine import Machine
from flexserve.errors import NpuLostError
from flexserve.platforms.linux import mman
from flexserve.platforms.ports import NpuState, Product
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.abi import NpuInterrupt, PageState
from flexserve.platforms.trustzone.flexnpu import TrustZoneNpu
from flexserve.platforms.trustzone.guest_pages import GuestPages
from flexserve.platforms.trustzone.ram import PAGE
from flexserve.platforms.trustzone.secure_memory import TrustZoneMemory, pages_of
from flexserve.testing.machines import booted
from flexserve.testing.npu_contract import Bench
from flexserve.testing.trustzone import eventually
from flexserve.testing.trustzone_npu import DRIVER, NpuMachine, OsJobs
from flexserve.units import KIB, MIB

_CHUNK = 64 * KIB
_SPARE = 32  # chunks that come and go
_HANG = 60.0  # seconds
_TELL_EVERY = 10_000  # steps
_SECRET = b"nobody else's "
_SHAPES = ((1, 1, 32), (2, 33, 96), (40, 7, 256), (33, 129, 64), (64, 200, 128))

Moves = Sequence[tuple[int, Callable[[], None]]]  # how often each is made, beside the others


class Os(Protocol):
    """The other side of a walk."""

    driver: bytes  # SHA-256 of what drives its NPU

    def pages(self) -> GuestPages:
        """Return the pages of the secure world that begins."""

    def moves(self) -> Moves:
        """Return what it may do."""

    def relent(self) -> None:
        """Lend the NPU and serve, from now on."""

    def settle(self) -> None:
        """Assert that it has its NPU, and what else is true at the end."""


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """A product and what comes out of it."""

    product: Product
    expected: bytes


class Secure:
    """The secure world of a walk."""

    def __init__(self, pages: GuestPages, driver: bytes, rng: random.Random, done: Counter[str]) -> None:
        self._random, self._done = rng, done
        self._memory = TrustZoneMemory(pages, _CHUNK)
        self._npu = TrustZoneNpu(pages, self._memory, driver)
        pages.start(self._npu)
        self._bench = Bench(self._memory, self._npu.limits)
        self._tasks = [self._task(*shape) for shape in _SHAPES]
        self._spare = self._memory.reserve(_SPARE * _CHUNK)
        self._committed: set[int] = set()
        self._running: list[Task] = []

    def moves(self) -> Moves:
        """Return what it may do."""
        return [(8, self.ask), (8, self.submit), (12, self.wait), (1, self.release), (6, self.come_and_go)]

    def _task(self, rows: int, columns: int, depth: int) -> Task:
        product = self._bench.product(rows, columns, depth, padding=8)
        return Task(product, self._bench.expected(product))

    def ask(self) -> None:
        self._npu.ask()

    def submit(self) -> None:
        if self._running:
            return
        tasks = self._random.sample(self._tasks, self._random.randint(1, 3))
        for task in tasks:
            self._spoil(task)
        try:
            self._npu.submit([task.product for task in tasks], self._bench.place)
        except NpuLostError:
            self._done["refused"] += 1
            return
        self._running = tasks

    def wait(self) -> None:
        if not self._running:
            return
        try:
            over = self._npu.wait(self._random.choice((0.0, 0.001, 0.02)))
        except NpuLostError:
            self._done["lost"] += 1
            self._npu.release()
            self._running = []
            return
        if over:
            for task in self._running:
                assert self._bench.result(task.product) == task.expected, "a wrong product"
            self._done["computed"] += 1
            self._running = []

    def release(self) -> None:
        self._npu.release()

    def come_and_go(self) -> None:
        """Commit a chunk and write a secret into it, or release it."""
        chunk = self._random.randrange(_SPARE)
        at = chunk * _CHUNK
        if chunk in self._committed:
            keep = self._random.random() < 0.3
            self._committed.remove(chunk)
            self._memory.release(self._spare, at, _CHUNK, keep=keep)
            return
        self._memory.commit(self._spare, at, _CHUNK)
        view = self._memory.view(self._spare, at, _CHUNK)
        assert not any(view[:: PAGE // 2]), "a page came with something in it"
        view[: len(_SECRET)] = _SECRET
        self._committed.add(chunk)

    def leave(self) -> None:
        """Give everything back, the NPU first."""
        self._npu.release()
        assert eventually(lambda: self._npu.state is NpuState.AWAY, within=_HANG), "it does not go"
        for chunk in sorted(self._committed):
            self._memory.release(self._spare, chunk * _CHUNK, _CHUNK)
        self._committed.clear()

    def _spoil(self, task: Task) -> None:
        length, stride = len(task.expected), task.product.c_stride
        columns = 4 * task.product.columns
        view = mman.view(task.product.c, length)
        for row in range(task.product.rows):
            view[row * stride : row * stride + columns] = b"\x55" * columns


class FakeOs:
    """The OS in Python, whose every thought can be looked at."""

    driver = DRIVER

    def __init__(self, machine: NpuMachine, rng: random.Random, done: Counter[str]) -> None:
        self._machine, self._random, self._done = machine, rng, done
        self._jobs = OsJobs(machine)
        self._lent = 0  # how often it had lent it when it last computed

    @classmethod
    @contextlib.contextmanager
    def running(cls, rng: random.Random, done: Counter[str]) -> Iterator[FakeOs]:
        """Run one."""
        with NpuMachine(64 * MIB) as machine:
            yield cls(machine, rng, done)

    def pages(self) -> GuestPages:
        return self._machine.unbegun()

    def moves(self) -> Moves:
        return [
            (3, self.want_back),
            (2, self.change_mind),
            (3, self.compute),
            (1, self.pry),
            (1, self.stall),
            (1, self.check_tables),
        ]

    def want_back(self) -> None:
        self._machine.gate.ask(self._random.choice((0, 5, 100)))

    def change_mind(self) -> None:
        """Have the OS lend it no more, or again."""
        if self._machine.lender.willing and self._random.random() < 0.3:
            self._machine.lender.willing = False
        else:
            self._machine.relent()

    def compute(self) -> None:
        """Have the OS compute something, if it has the NPU; look for what the other world has left there."""
        with self._alone() as alone:
            if not alone:
                return
            if self._machine.lender.lent != self._lent:
                assert self._jobs.reuse() == NpuInterrupt.BAD_COMMAND, "something was left on the chip"
                self._lent = self._machine.lender.lent
            assert self._jobs.compute(), "a wrong product of the OS"
            self._done["computed for the OS"] += 1

    def pry(self) -> None:
        """Have the OS name a secure page in a job, if it has the NPU."""
        secure = np.flatnonzero(np.frombuffer(self._machine.monitor.states, np.uint8) == PageState.SECURE)
        with self._alone() as alone:
            if alone and len(secure):
                raw = self._jobs.read(int(self._random.choice(secure)))
                assert raw & NpuInterrupt.READ_FAULT, "the OS reached a secure page"
                self._done["stopped"] += 1

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Keep the OS from doing anything else; yields whether it has an NPU that works."""
        with self._machine.hung():
            yield self._machine.gate.normal and not self._machine.device.stuck

    def stall(self) -> None:
        """Have the device begin no more jobs, or, more often, again."""
        self._machine.device.stuck = self._random.random() < 0.3

    def check_tables(self) -> None:
        """The NPU's tables say what the page states say."""
        monitor, gate = self._machine.monitor, self._machine.gate
        with monitor.lock:
            states = np.frombuffer(bytes(monitor.states), np.uint8)
            assert np.array_equal(gate.secure.shown, states == PageState.SECURE)
            assert np.array_equal(gate.devices.shown, states == PageState.NORMAL)

    def relent(self) -> None:
        self._machine.device.stuck = False
        self._machine.relent()

    def settle(self) -> None:
        assert eventually(lambda: self._machine.gate.normal, within=_HANG)
        self.check_tables()
        counts = self._machine.monitor.counts()
        assert sum(counts.values()) == self._machine.monitor.ram.pages
        assert self._machine.driver.leaks == 0, "a page came back with something in it"


class GuestOs:
    """The Linux of a real machine: its driver lends, its programs compute and look at their results."""

    def __init__(self, machine: Machine, rng: random.Random, done: Counter[str]) -> None:
        self._machine, self._random, self._done = machine, rng, done
        self.driver = machine.npu_driver
        self._job: str | None = None  # of a program that uses the NPU for a while

    @classmethod
    @contextlib.contextmanager
    def running(cls, rng: random.Random, done: Counter[str]) -> Iterator[GuestOs]:
        """Boot one."""
        with booted(npu=True, options=Options(npu=True)) as machine:
            yield cls(machine, rng, done)

    def pages(self) -> GuestPages:
        ram, doorbell = (os.dup(fd) for fd in self._machine.secure_fds)
        return pages_of(ram, doorbell)

    def moves(self) -> Moves:
        return [(1, self.compute), (1, self.change_mind)]

    def compute(self) -> None:
        """Have a program start that uses the NPU for a while, or hear what came of it."""
        ask = self._machine.agent.ask
        if self._job is None:
            seconds = str(self._random.choice((1, 2)))
            self._job = str(ask("start", "npu", "vision", seconds)["job"])
            return
        told = ask("job", self._job)
        if told["running"]:
            return
        assert told["status"] == 0, told
        assert told["result"]["wrong"] == 0, told
        self._done["computed for the OS"] += told["result"]["products"]
        self._job = None

    def change_mind(self) -> None:
        """Have the driver want it back and keep it, or lend it again."""
        self._detach(self._random.random() < 0.3)

    def _detach(self, detached: bool) -> None:
        """Have it keep the NPU, which it does not get within seconds if the walk does not give it."""
        path = "/sys/kernel/debug/flexnpu/detach"
        with contextlib.suppress(Exception):
            self._machine.agent.ask("write", path, str(int(detached)), seconds=_HANG)

    def relent(self) -> None:
        self._detach(False)

    def settle(self) -> None:
        assert eventually(lambda: self._machine.monitor().npu is abi.NpuState.NORMAL, within=_HANG)
        while self._job is not None:
            self.compute()


def walk(
    steps: int, seed: int, say: Callable[[str], None], *, on: type[FakeOs | GuestOs] = FakeOs
) -> Counter[str]:
    """Take `steps` steps and return what was done how often. Raises AssertionError, the seed in a note."""
    rng, done = random.Random(seed), Counter[str]()  # noqa: S311
    try:
        with on.running(rng, done) as other:
            secure = Secure(other.pages(), other.driver, rng, done)
            weights, moves = zip(*secure.moves(), *other.moves(), strict=True)
            for number in range(1, steps + 1):
                (move,) = rng.choices(moves, weights)
                move()
                done[f"{type(move.__self__).__name__}.{move.__name__}"] += 1
                if number % _TELL_EVERY == 0:
                    say(f"{number} steps: {dict(done.most_common())}")
            other.relent()
            secure.leave()
            other.settle()
    except BaseException as error:
        error.add_note(f"in a walk of seed {seed}: {dict(done)}")
        raise
    return done


def main() -> None:
    """Walk as far as the command line says."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--booted", action="store_true", help="on a real machine: some milliseconds a step")
    chosen = parser.parse_args()
    say = functools.partial(print, flush=True)
    done = walk(chosen.steps, chosen.seed, say, on=GuestOs if chosen.booted else FakeOs)
    say(f"{chosen.steps} steps of seed {chosen.seed}: {dict(done.most_common())}")


if __name__ == "__main__":
    main()
