"""When the normal world grants memory, and when it takes memory back. Pure: time is passed in.

Theory. Let `available` be what the OS could hand out without swapping, and `pending` the bytes
that were granted but that the OS does not count as used yet. What matters is the level that
`available` sinks to once every promise is kept:

    level = available - pending

A grant of n bytes lowers the level by n at once, whether or not the memory is touched yet, so
that two quick grants cannot both spend the same free memory. Against the level stand lines:

    roomy      2 × high; above it a memory stall cannot be our doing
    high       a recall brings the level back up to here
    low        a level below this one starts a recall
    emergency  not even the minimum that a request needs for progress may sink it below this

Why it does not oscillate. With a constant external load only grants lower the level, and every
grant leaves it at or above the line whose crossing starts a recall: ordinary grants stop at
`low` or higher, and a progress grant that dips below `low` takes the trigger down with it. So no
grant is followed by a recall that it caused itself. The lowered trigger lasts `calm` seconds, so
that a request can use what it got, and an idle model still gives it back. Against a load that
jitters around `low`, a recall leaves the policy *pressed* for `calm` seconds: grants then stop at
`high`, so the distance high - low must be eaten by others first. Either way a recall that was
delivered is followed by `calm` seconds without another, unless the load itself grows. After any
recall, automatic or asked for by a person, a *hold* sets aside what came back for the one it was
given back for: for `hold` seconds it counts as promised, and grants are made from the rest. On a
machine with plenty free that costs the next request nothing.

A stall (PSI "some avg10") is a second sign of pressure. It averages over ten seconds and counts
the whole machine, hence the longer cool-down, and hence it is believed only below `roomy`: the
thrashing of a container in its own small limit is not cured by emptying ours.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from flexserve.units import MIB, align_down, format_size

_MAX_MISSES = 5  # doublings of the cool-down after recalls that brought less than asked


class Sample(Protocol):
    """What the policy reads of a look at memory (flexserve.platforms.ports.MemorySample has it)."""

    @property
    def available(self) -> int:
        """Bytes the OS could hand out without swapping."""

    @property
    def stall(self) -> float | None:
        """PSI "some avg10" in percent; None where the kernel has no PSI."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """The lines and the times of the policy. Sizes in bytes, times in seconds, stall in percent."""

    low: int
    high: int
    emergency: int
    stall: float = 10.0
    cooldown: float = 1.0  # between recalls for the level
    stall_cooldown: float = 10.0  # between recalls for a stall: the window that PSI averages over
    hold: float = 3.0  # after any recall: what came back is set aside
    calm: float = 30.0  # after an automatic recall: ordinary grants stop at `high`

    def __post_init__(self) -> None:
        if not 0 <= self.emergency <= self.low < self.high:
            raise ValueError("the lines must stand in the order emergency <= low < high")

    @classmethod
    def for_machine(cls, total: int) -> Limits:
        """Return the defaults for `total` bytes of RAM: low is 5 % of it, at least 512 MiB."""
        low = max(total // 20, 512 * MIB)
        return cls(low=low, high=low + low // 2, emergency=low // 4)

    @property
    def roomy(self) -> int:
        """The level above which a stall is somebody else's."""
        return 2 * self.high


@dataclasses.dataclass(frozen=True, slots=True)
class Holdings:
    """What the secure world was granted, and how much of it the OS already counts as used (bytes)."""

    granted: int
    used: int

    @property
    def pending(self) -> int:
        """Bytes promised that the OS does not miss yet."""
        return max(0, self.granted - self.used)


@dataclasses.dataclass(frozen=True, slots=True)
class GrantDecision:
    """`size` bytes may be granted now (0: refused), and why not more or not less."""

    size: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class RecallDecision:
    """`size` bytes should come back, and why."""

    size: int
    reason: str


class PressurePolicy:
    """Decides grants and recalls for one machine. Not thread-safe; `now` never runs backwards."""

    def __init__(self, limits: Limits, *, granule: int = 1) -> None:
        self.limits = limits
        self._granule = granule  # bytes; partial grants are whole granules
        self._sunk_to = limits.low  # the trigger, for as long as a progress grant lowers it
        self._sunk_until = float("-inf")
        self._set_aside = 0  # bytes, until the hold ends
        self._hold_until = float("-inf")
        self._calm_at = float("-inf")
        self._next_recall = float("-inf")
        self._next_stall_recall = float("-inf")
        self._misses = 0

    def grant(self, sample: Sample, held: Holdings, *, size: int, minimum: int, now: float) -> GrantDecision:
        """Return how many of `size` bytes may be granted: at least `minimum`, or 0.

        Mutates only the trigger (see the theory above), when a progress grant dips below `low`.
        """
        level = sample.available - held.pending
        line, why = self._grant_line(sample, now)
        if now < self._hold_until:
            line, why = line + self._set_aside, "memory was just recalled"
        room = align_down(max(0, level - line), self._granule)
        if room >= size:
            return GrantDecision(size, "enough memory is free")
        if room >= max(minimum, 1):
            return GrantDecision(room, f"only part of it: {why}")
        if 0 < minimum <= level - self.limits.emergency:
            self._sunk_to = min(self._trigger(now), level - minimum)
            self._sunk_until = now + self.limits.calm
            return GrantDecision(minimum, f"only the minimum: {why}")
        return GrantDecision(0, f"refused: {format_size(max(0, level))} would be left free, {why}")

    def recall(self, sample: Sample, held: Holdings, *, now: float) -> RecallDecision | None:
        """Return what should come back now, or None. Starts the cool-down and the pressed time."""
        level = sample.available - held.pending
        if level >= self.limits.low:
            self._sunk_until = now
        trigger = self._trigger(now)
        if held.granted == 0 or now < self._next_recall:
            return None
        if level < trigger:
            size = self.limits.high - level
            reason = f"{format_size(max(0, level))} available, below {format_size(trigger)}"
        elif self._stalled(sample) and level < self.limits.roomy and now >= self._next_stall_recall:
            size = min(self.limits.high - self.limits.low, self.limits.roomy - level)
            reason = f"processes stalled on memory {sample.stall:.0f} % of the last ten seconds"
            self._next_stall_recall = now + self.limits.stall_cooldown
        else:
            return None
        self._next_recall = now + self.limits.cooldown * 2**self._misses
        self._calm_at = now + self.limits.calm
        return RecallDecision(min(size, held.granted), reason)

    def recalled(self, *, asked: int | None, returned: int, now: float) -> None:
        """Note the outcome of a recall; `asked` None when a person or a client asked for it.

        Starts or extends the hold. A recall that brought less than asked (the rest is in use by running
        requests) doubles the time to the next one, because asking again at once brings nothing.
        """
        self._set_aside = returned + (self._set_aside if now < self._hold_until else 0)
        self._hold_until = now + self.limits.hold
        if asked is not None:
            self._misses = min(self._misses + 1, _MAX_MISSES) if returned < asked else 0
            self._next_recall = now + self.limits.cooldown * 2**self._misses

    def headroom(self, sample: Sample, held: Holdings, *, now: float) -> int:
        """Return the bytes that others may still take before a recall starts (0: none)."""
        return max(0, sample.available - held.pending - self._trigger(now))

    def _trigger(self, now: float) -> int:
        """Return the line below which the level starts a recall."""
        return self._sunk_to if now < self._sunk_until else self.limits.low

    def _stalled(self, sample: Sample) -> bool:
        return sample.stall is not None and sample.stall >= self.limits.stall

    def _grant_line(self, sample: Sample, now: float) -> tuple[int, str]:
        if self._stalled(sample):
            return self.limits.roomy, "processes stall on memory"
        if now < self._calm_at:
            return self.limits.high, "memory was short a moment ago"
        return self.limits.low, "the rest is kept free for others"
