"""Allocating for the secure world and reclaiming: Flex-Mem against CMA, under resident background memory."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from flexserve.bench.trustzone.measured_machine import MeasuredMachine, Say, pages_in
from flexserve.bench.trustzone.plan import Allocator, Plan
from flexserve.errors import GrantRefusedError
from flexserve.platforms.trustzone.guest_pages import GuestPages
from flexserve.units import format_size

PARTS = ("allocate", "grant", "take", "free")
_UNUSED = ("take", "free")  # of pages that nobody wrote to
_TRIES = 5  # of what takes but milliseconds: the middle one counts
_ORDERS = 10

_Spent = dict[str, float]  # seconds, by part


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One allocation and its reclamation, in seconds of the guest, by the driver's own counters."""

    allocate: float  # in the kernel's allocator
    grant: float  # unmapping from Stage-2 and the devices, by the monitor
    take: float  # scrubbing and mapping again, by the monitor
    free: float  # back to the kernel's allocator
    unused_take: float  # mapping again alone: of pages that the secure world never used
    unused_free: float
    orders: tuple[int, ...]  # pages that came in blocks of each order
    moved: int  # pages of others that the kernel moved meanwhile


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """A booted machine whose driver has memory from `allocator`."""

    allocator: Allocator
    measured: MeasuredMachine
    pages: GuestPages


class Memory:
    """Measures, and keeps the samples by kernel, size and allocator; None where the kernel refused."""

    def __init__(self, plan: Plan, say: Say) -> None:
        self._plan, self._say = plan, say
        self._samples: dict[tuple[str, int], dict[Allocator, list[Sample | None]]] = {}

    def round(self, number: int) -> None:
        """Measure every size with each allocator, in turns.

        Each has a machine of its own, which has nothing to do while the other one is measured.
        """
        order = list(Allocator) if number % 2 == 0 else list(reversed(Allocator))
        for kernel in self._plan.kernels:
            with contextlib.ExitStack() as stack:
                subjects = []
                for allocator in order:
                    setting = MeasuredMachine.set(self._plan, allocator, self._say, bootargs=kernel.bootargs)
                    measured = stack.enter_context(setting)
                    pages = stack.enter_context(measured.secure_core())
                    pages.start()
                    subjects.append(Subject(allocator, measured, pages))
                for size in kernel.sizes:
                    self._say(f"round {number + 1}: {format_size(size)} of memory (kernel: {kernel.name})")
                    cell = self._samples.setdefault((kernel.name, size), {each: [] for each in Allocator})
                    for allocator, sample in self._measure(subjects, size).items():
                        cell[allocator].append(sample)

    def _measure(self, subjects: Sequence[Subject], size: int) -> dict[Allocator, Sample | None]:
        """Each size has background memory of its own: what CMA moved away once stays away."""
        with contextlib.ExitStack() as stack:
            for subject in subjects:
                stack.enter_context(subject.measured.background(self._plan.background))
            used = {subject.allocator: _hand_over(subject, size) for subject in subjects}
            tries: dict[Allocator, list[_Spent]] = {subject.allocator: [] for subject in subjects}
            for _ in range(_TRIES):
                for subject in subjects:
                    tries[subject.allocator] += _hand_back_unused(subject, size)
        return {allocator: _sample(used[allocator], tries[allocator]) for allocator in tries}

    def report(self) -> dict[str, Any]:
        """Return one cell for each kernel and size."""
        return {"cells": [cell_of(*key, by_allocator) for key, by_allocator in self._samples.items()]}


@dataclasses.dataclass(frozen=True, slots=True)
class _HandedOver:
    """What it took to hand memory over and, used, back; and how it came."""

    spent: _Spent
    orders: tuple[int, ...]
    moved: int


def _hand_over(subject: Subject, size: int) -> _HandedOver | None:
    """Have memory and give it back; None where the kernel refused it."""
    measured, pages = subject.measured, subject.pages
    before, moved = measured.counters(), measured.moved()
    try:
        runs = pages.take(pages_in(size))
    except GrantRefusedError:
        return None
    held, moved = measured.counters(), measured.moved() - moved
    pages.give_back(runs)
    pages.trim(0)
    measured.wait_until_free()
    orders = tuple(held[f"order{order}"] for order in range(_ORDERS))
    return _HandedOver(_spent(before, measured.counters(), PARTS), orders, moved)


def _hand_back_unused(subject: Subject, size: int) -> list[_Spent]:
    """Return what it takes to give back as much that was never used; nothing where the kernel refused it."""
    measured, pages = subject.measured, subject.pages
    came = pages.want(pages_in(size), pages_in(size))
    before = measured.counters()
    pages.trim(0)
    measured.wait_until_free()
    return [_spent(before, measured.counters(), _UNUSED)] if came >= pages_in(size) else []


def _sample(used: _HandedOver | None, tries: Sequence[_Spent]) -> Sample | None:
    if used is None or not tries:
        return None
    unused = sorted(tries, key=lambda spent: sum(spent.values()))[len(tries) // 2]
    return Sample(
        **used.spent,
        unused_take=unused["take"],
        unused_free=unused["free"],
        orders=used.orders,
        moved=used.moved,
    )


def _spent(before: dict[str, int], after: dict[str, int], parts: Sequence[str]) -> _Spent:
    return {part: (after[f"{part}_ns"] - before[f"{part}_ns"]) / 1e9 for part in parts}


def cell_of(kernel: str, size: int, by_allocator: dict[Allocator, list[Sample | None]]) -> dict[str, Any]:
    """Return medians of the samples, and the comparison where there are some of both allocators."""
    made = {each: [sample for sample in found if sample] for each, found in by_allocator.items()}
    refused = {each.value: len(found) - len(made[each]) for each, found in by_allocator.items()}
    cell: dict[str, Any] = {"kernel": kernel, "size": size, "refused": refused}
    for allocator, samples in made.items():
        if samples:
            cell[allocator.value] = _medians(samples, pages_in(size))
    if all(made.values()):
        cell |= _comparison(made[Allocator.FLEXMEM], made[Allocator.CMA])
    return cell


def _medians(samples: Sequence[Sample], pages: int) -> dict[str, Any]:
    seconds = {part: _median(samples, part) for part in (*PARTS, "unused_take", "unused_free")}
    return {
        "seconds": seconds,
        "ns_per_page": {part: spent / pages * 1e9 for part, spent in seconds.items()},
        "orders": [statistics.median(counts) for counts in zip(*(s.orders for s in samples), strict=True)],
        "moved": statistics.median(sample.moved for sample in samples) / pages,
        "samples": [dataclasses.asdict(sample) for sample in samples],
    }


def _comparison(flexmem: Sequence[Sample], cma: Sequence[Sample]) -> dict[str, float]:
    """Return how many times faster Flex-Mem was: ratios of medians.

    The monitor's work counts for Flex-Mem alone: a memory firewall protects one run with one write.
    Overwriting is left out of `reclaim_speedup`, as the published figure must leave it out: 8 GiB in
    80.5 ms are 107 GB/s, and the paper's board has memory of 34 GB/s. It is the same for both, and
    in `scrubbed_speedup`.
    """
    return {
        "allocate_speedup": _median(cma, "allocate") / _median(flexmem, "allocate", "grant"),
        "reclaim_speedup": _median(cma, "unused_free") / _median(flexmem, "unused_take", "unused_free"),
        "scrubbed_speedup": _median(cma, "take", "free") / _median(flexmem, "take", "free"),
    }


def _median(samples: Sequence[Sample], *parts: str) -> float:
    return float(statistics.median(sum(getattr(sample, part) for part in parts) for sample in samples))
