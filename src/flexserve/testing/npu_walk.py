"""Both worlds at one NPU, at random: python -m flexserve.testing.npu_walk --steps 100000

The secure world asks, computes, waits or not, gives back, and its memory comes and goes meanwhile. The
OS lends or does not, wants its NPU back, and computes with it itself; the device stalls. Whatever the
order: each product is right to the last bit or said to be lost, nothing hangs, the NPU reaches exactly the
pages of the world that has it, and nothing of one world is left on it, or in a page, for the other.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import random
from collections import Counter
from collections.abc import Callable

import numpy as np

from flexserve.errors import NpuLostError
from flexserve.platforms.linux import mman
from flexserve.platforms.ports import Arena, NpuState, Product
from flexserve.platforms.trustzone.abi import NpuInterrupt, PageState
from flexserve.platforms.trustzone.flexnpu import TrustZoneNpu
from flexserve.platforms.trustzone.ram import PAGE
from flexserve.platforms.trustzone.secure_memory import TrustZoneMemory
from flexserve.testing.npu_contract import Bench
from flexserve.testing.trustzone import eventually
from flexserve.testing.trustzone_npu import DRIVER, NpuMachine, OsJobs
from flexserve.units import KIB, MIB

_RAM = 64 * MIB
_GRANULE = 64 * KIB
_SPARE = 32  # granules that come and go
_HANG = 60.0  # seconds
_CHECK_EVERY = 50  # steps
_TELL_EVERY = 10_000  # steps
_SECRET = b"nobody else's "


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """A product and what comes out of it."""

    product: Product
    expected: bytes


class NpuWalk:
    """A machine, and a walk over what both worlds may do with its NPU."""

    def __init__(self, seed: int) -> None:
        self.seed, self.done = seed, Counter[str]()
        self._random = random.Random(seed)  # noqa: S311
        self._machine = NpuMachine(_RAM)
        self._machine.__enter__()
        self._os_jobs = OsJobs(self._machine)
        pages = self._machine.pages()
        self._memory = TrustZoneMemory(pages, _GRANULE)
        self._npu = TrustZoneNpu(pages, self._memory, DRIVER)
        self._bench = Bench(self._memory, self._npu.limits)
        shapes = ((1, 1, 32), (2, 33, 96), (40, 7, 256), (33, 129, 64), (64, 200, 128))
        self._tasks = [self._task(*shape) for shape in shapes]
        self._spare: Arena = self._memory.reserve(_SPARE * _GRANULE)
        self._committed: set[int] = set()
        self._running: list[Task] = []
        self._lent = 0  # how often the OS had lent it when it last computed
        self._moves: list[tuple[int, Callable[[], None]]] = [
            (8, self.ask),
            (8, self.submit),
            (12, self.wait),
            (1, self.release),
            (6, self.come_and_go),
            (3, self.want_back),
            (2, self.change_mind),
            (3, self.compute_for_the_os),
            (1, self.pry),
            (1, self.stall),
        ]

    def _task(self, rows: int, columns: int, depth: int) -> Task:
        product = self._bench.product(rows, columns, depth, padding=8)
        return Task(product, self._bench.expected(product))

    def close(self) -> None:
        """End the machine, in order; every page must be the OS's again."""
        self.heal()
        self._npu.release()
        self._machine.relent()
        assert eventually(lambda: self._npu.state is NpuState.AWAY, within=_HANG)
        for granule in sorted(self._committed):
            self._memory.release(self._spare, granule * _GRANULE, _GRANULE)
        self._committed.clear()
        self.check()
        self._machine.__exit__(None, None, None)

    def step(self) -> None:
        """Do something."""
        weights, moves = zip(*self._moves, strict=True)
        (move,) = self._random.choices(moves, weights)
        move()
        self.done[move.__name__] += 1
        if sum(self.done.values()) % _CHECK_EVERY == 0:
            self.check_tables()

    # ---- the secure world

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
            self.done["refused"] += 1
            return
        self._running = tasks

    def wait(self) -> None:
        if not self._running:
            return
        try:
            over = self._npu.wait(self._random.choice((0.0, 0.001, 0.02)))
        except NpuLostError:
            self.done["lost"] += 1
            self._npu.release()
            self._running = []
            return
        if over:
            for task in self._running:
                assert self._bench.result(task.product) == task.expected, "a wrong product"
            self.done["computed"] += 1
            self._running = []

    def release(self) -> None:
        self._npu.release()

    def come_and_go(self) -> None:
        """Commit a granule and write a secret into it, or release it."""
        granule = self._random.randrange(_SPARE)
        at = granule * _GRANULE
        if granule in self._committed:
            keep = self._random.random() < 0.3
            self._committed.remove(granule)
            self._memory.release(self._spare, at, _GRANULE, keep=keep)
            return
        self._memory.commit(self._spare, at, _GRANULE)
        view = self._memory.view(self._spare, at, _GRANULE)
        assert not any(view[:: PAGE // 2]), "a page came with something in it"
        view[: len(_SECRET)] = _SECRET
        self._committed.add(granule)

    def _spoil(self, task: Task) -> None:
        length = len(task.expected)
        columns, stride = 4 * task.product.columns, task.product.c_stride
        view = mman.view(task.product.c, length)
        for row in range(task.product.rows):
            view[row * stride : row * stride + columns] = b"\x55" * columns

    # ---- the OS

    def want_back(self) -> None:
        self._machine.gate.ask(self._random.choice((0, 5, 100)))

    def change_mind(self) -> None:
        if self._machine.lender.willing and self._random.random() < 0.3:
            self._machine.lender.willing = False
        else:
            self._machine.relent()

    def compute_for_the_os(self) -> None:
        """Have the OS compute something, if it has the NPU; look for what the other world has left there."""
        with self._machine.hung():  # it does nothing else meanwhile, such as lending it
            if not self._machine.gate.normal or self._machine.device.stuck:
                return
            jobs = self._os_jobs
            if self._machine.lender.lent != self._lent:
                assert jobs.reuse() == NpuInterrupt.BAD_COMMAND, "something was left on the chip"
                self._lent = self._machine.lender.lent
            assert jobs.compute(), "a wrong product of the OS"
            self.done["computed for the OS"] += 1

    def pry(self) -> None:
        """Have the OS name a secure page in a job, if it has the NPU."""
        secure = np.flatnonzero(np.frombuffer(self._machine.monitor.states, np.uint8) == PageState.SECURE)
        with self._machine.hung():
            if self._machine.gate.normal and len(secure) and not self._machine.device.stuck:
                raw = self._os_jobs.read(int(self._random.choice(secure)))
                assert raw & NpuInterrupt.READ_FAULT, "the OS reached a secure page"
                self.done["stopped"] += 1

    def stall(self) -> None:
        """Have the device begin no more jobs, or, more often, again."""
        self._machine.device.stuck = self._random.random() < 0.3

    def heal(self) -> None:
        """Have the device work."""
        self._machine.device.stuck = False

    # ---- the laws

    def check_tables(self) -> None:
        """The NPU's tables say what the page states say."""
        monitor, gate = self._machine.monitor, self._machine.gate
        with monitor.lock:
            states = np.frombuffer(bytes(monitor.states), np.uint8)
            assert np.array_equal(gate.secure.shown, states == PageState.SECURE)
            assert np.array_equal(gate.devices.shown, states == PageState.NORMAL)

    def check(self) -> None:
        """Nothing is lost, and every page that came back was scrubbed."""
        self.check_tables()
        counts = self._machine.monitor.counts()
        assert sum(counts.values()) == self._machine.monitor.ram.pages
        assert self._machine.driver.leaks == 0, "a page came back with something in it"


def walk(steps: int, seed: int, say: Callable[[str], None]) -> Counter[str]:
    """Take `steps` steps and return what was done how often. Raises AssertionError, the seed in a note."""
    walk = NpuWalk(seed)
    try:
        for number in range(1, steps + 1):
            walk.step()
            if number % _TELL_EVERY == 0:
                say(f"{number} steps: {dict(walk.done.most_common())}")
        walk.close()
    except BaseException as error:
        error.add_note(f"after {sum(walk.done.values())} steps of seed {seed}: {dict(walk.done)}")
        raise
    return walk.done


def main() -> None:
    """Walk as far as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    say = functools.partial(print, flush=True)
    say(f"{chosen.steps} steps of seed {chosen.seed}: {dict(walk(chosen.steps, chosen.seed, say))}")


if __name__ == "__main__":
    main()
