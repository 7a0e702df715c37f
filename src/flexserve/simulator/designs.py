"""The systems that the paper compares, by what tells them apart. Everything else they share."""

from __future__ import annotations

import dataclasses
import enum

from flexserve.simulator.machine import Machine, SimModel


class Keeping(enum.Enum):
    """What stays in memory between requests."""

    NOTHING = "nothing"
    LEAST_RECENT = "page cache"  # as an OS keeps files: what was used longest ago goes first
    MOST_VALUABLE = "flexserve.policy.eviction"


@dataclasses.dataclass(frozen=True, slots=True)
class Design:
    """One of the systems."""

    name: str
    npu: bool  # else the CPU computes
    pipelined: bool  # else allocate, load, decrypt and compute come one after the other
    contiguous: bool  # memory from CMA, else pages as they come
    whole: bool  # all memory is allocated before anything else
    sealed: bool  # weights are taken out of the OS's reach and decrypted
    keeping: Keeping
    slowdown: float = 0.0  # of compute, by page tables that guard memory
    wake: float = 0.0  # seconds before the first work after a pause: the guard is switched on
    handover: float = 0.0  # seconds at the start of a request, to get the NPU
    switch: float = 0.0  # seconds before and after each forward pass
    launch: float = 0.0  # seconds for each forward pass
    start: float = 0.0  # seconds before a request: the framework starts anew

    @property
    def pass_overhead(self) -> float:
        """Seconds that protection adds to each forward pass, besides slowing it down."""
        return self.launch + 2 * self.switch


def designs(machine: Machine) -> dict[str, Design]:
    """Return the systems by the names that reports use, those of the paper's tables first."""
    nw_base = Design(
        "NW-Base",
        npu=True,
        pipelined=True,
        contiguous=False,
        whole=False,
        sealed=False,
        keeping=Keeping.LEAST_RECENT,
    )
    strawman = Design(
        "Strawman",
        npu=False,
        pipelined=False,
        contiguous=True,
        whole=True,
        sealed=True,
        keeping=Keeping.NOTHING,
    )
    # A secure NPU without FlexServe's: the whole driver changes hands once for each request, and
    # launching a task is taken to cost the same.
    optimized = dataclasses.replace(
        strawman,
        name="Strawman-OPT",
        npu=True,
        pipelined=True,
        handover=machine.driver_handover,
        launch=machine.task_launch,
    )
    flexserve = Design(
        "FlexServe",
        npu=True,
        pipelined=True,
        contiguous=False,
        whole=False,
        sealed=True,
        keeping=Keeping.MOST_VALUABLE,
        slowdown=machine.stage2_slowdown,
        wake=machine.stage2_wake,
        switch=machine.mode_switch,
        launch=machine.task_launch,
    )
    restarting = dataclasses.replace(
        strawman, name="Strawman, framework restarted", start=machine.framework_start
    )
    overlapped = dataclasses.replace(optimized, name="Strawman-OPT, allocating as it goes", whole=False)
    return {
        "flexserve": flexserve,
        "strawman": strawman,
        "strawman_opt": optimized,
        "nw_base": nw_base,
        "strawman_restart": restarting,
        "strawman_opt_overlapped": overlapped,
    }


@dataclasses.dataclass(frozen=True, slots=True)
class Costs:
    """What the steps of one design cost with one model on one machine, in seconds (per byte)."""

    allocate: float
    load: float
    protect: float
    decrypt: float
    give_back: float
    prefill: float  # per prompt token
    decode: float  # per token

    @classmethod
    def of(cls, design: Design, model: SimModel, machine: Machine, background: int) -> Costs:
        """Return the costs beside `background` bytes of other load."""
        contiguous = machine.contiguous_seconds(1, background)
        paged_guard = machine.protect if design.sealed and not design.contiguous else 0.0
        return cls(
            allocate=contiguous if design.contiguous else machine.allocate,
            load=machine.load,
            protect=paged_guard,  # a contiguous region is one entry in every table
            decrypt=machine.decrypt if design.sealed else 0.0,
            give_back=machine.contiguous_reclaim if design.contiguous else machine.reclaim,
            prefill=1 / machine.prefill_speed(model.parameters, npu=design.npu),
            decode=machine.decode_seconds(model.weights, npu=design.npu),
        )

    @property
    def restore(self) -> float:
        """Seconds per byte of a pipelined restore: its slower unit, flash or CPU."""
        return max(self.load, self.allocate + self.protect + self.decrypt)

    @property
    def stream(self) -> float:
        """Seconds per byte that comes where another one was: memory that is there needs no allocation."""
        return max(self.load, self.protect + self.decrypt)
