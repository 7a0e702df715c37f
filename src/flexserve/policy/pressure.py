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

The foreground. Most programs keep their data in the OS's page cache, which counts as available:
the level stays high while they suffer. What tells is the *refault*: a page read back soon after
the OS dropped it. Refaults of `refault_rate` bytes a second or more, while less than `full` is
free (not even used as cache), are the third sign: somebody's working set no longer fits, and what
we keep for a later request is what it lacks. (With more free, a refault is of something dropped
long ago.) Then memory that no request uses goes back, `cushion` bytes ahead of what others take
and twice as much each time they took it all. Until it is calm again, refaults while less than
`cushion` is free are sign enough. So a foreground program that grows never waits for us longer
than one look, one that stops growing takes no more, and one whose refaults no memory of ours can
cure (it thrashes in a limit of its own) leaves what it got free, which ends the sign. While
pressed like this the budget is what we hold plus what is free beyond the cushion: cache of others
is not ours to displace. `calm` seconds after the last sign the budget grows again to all that the
lines above allow. Should the growth itself bring the sign back, the next calm is twice as long,
up to `longest_calm`, after which a quiet time of that length makes it short again. So k such
episodes in a row take `calm` × (2^k - 1) seconds, and `longest_calm` more before the next short calm,
whatever others do. What the secure world reads itself, restoring what it was granted, is not held
against others.

Others may ask outright (`reserve`): the level is first brought to `low` + what they need, and for
the time they name no grant at all, progress included, is made from it.

Memory that nobody needs (`spare`) is what stands above `high` when there is no sign of pressure: no
stall, no hold, nothing read back and no sign of that still counting, and no recall by a person after which
no request came. Whoever has weights brought back
for which no request asks yet asks for it piece by piece. A piece is at most high - low, so that even if
others take as much at the same moment the level stays at `low`, and no recall follows.

The cap is a person's word: never more granted than it, minimum included.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Protocol

from flexserve.policy.foreground import Foreground
from flexserve.units import GIB, MIB, align_down, format_size

_MAX_MISSES = 5  # doublings of the cool-down after recalls that brought less than asked
SHORTEST_PERIOD = 0.25  # seconds between looks at memory while it may become short …
LONGEST_PERIOD = 2.0  # … and while it cannot
# A process that touches fresh memory takes about 1 GiB/s per core from the OS; looking again after
# half the time it needs to eat the headroom sees it coming. An idle server looks every 2 s.
_APPETITE = 2 * GIB  # bytes per second
MAX_RESERVATIONS = 64


class Sample(Protocol):
    """What the policy reads of a look at memory (flexserve.platforms.ports.MemorySample has it)."""

    @property
    def available(self) -> int:
        """Bytes the OS could hand out without swapping."""

    @property
    def stall(self) -> float | None:
        """PSI "some avg10" in percent; None where the kernel has no PSI."""

    @property
    def free(self) -> int | None:
        """Bytes nobody uses, not even as cache; None where the OS does not tell."""

    @property
    def refaulted(self) -> int | None:
        """Bytes read back soon after the OS dropped them, since some moment; None if it does not tell."""


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
    # After the last sign of pressure: no ordinary grants beyond the pressed lines. With the time of a
    # restore, a model is warm again within half a minute.
    calm: float = 22.0
    longest_calm: float = 480.0
    full: int = 128 * MIB  # the OS's own reserve is of this order
    cushion: int = 256 * MIB  # kept free ahead of a foreground that grows: a quarter second's appetite
    refault_rate: int = (
        MIB // 2
    )  # bytes per second; 128 reads a second cost a fast disk's user 2 % of its time

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


class Bound(enum.Enum):
    """What limits the memory that may be granted. The values are metric labels."""

    LEVEL = "level"  # the rest is kept free for others
    PRESSED = "pressed"  # memory was short a moment ago
    STALL = "stall"
    HOLD = "hold"  # what a recall brought is set aside
    RESERVED = "reserved"  # another program asked for it
    FOREGROUND = "foreground"  # others read back what they lost
    CAP = "cap"
    GUEST = "guest"  # a kernel that asks nobody decides
    UNKNOWN = "unknown"  # the OS does not tell, or nobody looked yet


@dataclasses.dataclass(frozen=True, slots=True)
class GrantDecision:
    """`size` bytes may be granted now (0: refused), and why not more or not less.

    `bound` is what stood in the way of more; None when nothing did.
    """

    size: int
    reason: str
    bound: Bound | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class RecallDecision:
    """`size` bytes should come back, and why. `gentle`: only what no running request uses."""

    size: int
    reason: str
    gentle: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Budget:
    """What the secure world may hold in total now (bytes), and what bounds it."""

    size: int
    bound: Bound
    reason: str


class PressurePolicy:
    """Decides grants and recalls for one machine. Not thread-safe; `now` never runs backwards.

    `cap`, in bytes, may be changed at any time; None: no cap.
    """

    def __init__(self, limits: Limits, *, chunk: int = 1, cap: int | None = None) -> None:
        self.limits = limits
        self.cap = cap
        self._chunk = chunk  # bytes; partial grants are whole chunks
        self._sunk_to = limits.low  # the trigger, for as long as a progress grant lowers it
        self._sunk_until = float("-inf")
        self._set_aside = 0  # bytes, until the hold ends
        self._hold_until = float("-inf")
        self._calm_at = float("-inf")
        self._next_recall = float("-inf")
        self._next_stall_recall = float("-inf")
        self._misses = 0
        self._unwanted = False  # a person had memory recalled, and no request needed any since
        self._reservations: list[tuple[float, int]] = []  # until when, bytes
        self._foreground = Foreground(
            full=limits.full,
            cushion=limits.cushion,
            threshold=limits.refault_rate,
            calm=limits.calm,
            longest_calm=limits.longest_calm,
        )

    # ---- grants

    def grant(self, sample: Sample, held: Holdings, *, size: int, minimum: int, now: float) -> GrantDecision:
        """Return how many of `size` bytes may be granted: at least `minimum`, or 0.

        Mutates the trigger (see the theory above), when a progress grant dips below `low`, and what is
        known of refaults.
        """
        self._unwanted = False
        self._foreground.look(sample, now=now)
        decision = self._grant(sample, held, size, minimum, now)
        self._foreground.expect(decision.size, now=now)
        return decision

    def spare(self, sample: Sample, held: Holdings, *, size: int, now: float) -> int:
        """Return how many of `size` bytes nobody needs now. Mutates what is known of refaults."""
        self._foreground.look(sample, now=now)
        pressed = self._stalled(sample) or now < self._hold_until or self._unwanted
        if pressed or not self._foreground.is_quiet(now):
            return 0
        room, _, _ = self._room(sample, held, now)
        above = sample.available - held.pending - self._reserved(now) - self.limits.high
        piece = min(size, room, above, self.limits.high - self.limits.low)
        return align_down(max(0, piece), self._chunk)

    def budget(self, sample: Sample, held: Holdings, *, now: float) -> Budget:
        """Return what may be held now, progress grants aside. Mutates nothing."""
        room, bound, reason = self._room(sample, held, now)
        size = held.granted + room
        return Budget(size if self.cap is None else min(size, self.cap), bound, reason)

    def _grant(self, sample: Sample, held: Holdings, size: int, minimum: int, now: float) -> GrantDecision:
        room, bound, why = self._room(sample, held, now)
        if room >= size:
            return GrantDecision(size, "enough memory is free")
        if room >= max(minimum, 1):
            return GrantDecision(room, f"only part of it: {why}", bound)
        level = sample.available - held.pending
        spare = level - self.limits.emergency - self._reserved(now)
        if 0 < minimum <= min(spare, self._below_cap(held)):
            self._sunk_to = min(self._trigger(now), level - minimum)
            self._sunk_until = now + self.limits.calm
            return GrantDecision(minimum, f"only the minimum: {why}", bound)
        if bound is Bound.CAP:
            return GrantDecision(0, f"refused: {format_size(held.granted)} is granted, {why}", bound)
        return GrantDecision(0, f"refused: {format_size(max(0, level))} would be left free, {why}", bound)

    def _room(self, sample: Sample, held: Holdings, now: float) -> tuple[int, Bound, str]:
        """Return the bytes that an ordinary grant may have, what bounds them, and that in words."""
        line, bound, why = self._grant_line(sample, now)
        if now < self._hold_until:
            line, bound, why = line + self._set_aside, Bound.HOLD, "memory was just recalled"
        if reserved := self._reserved(now):
            line, bound = line + reserved, Bound.RESERVED
            why = f"{format_size(reserved)} is held for another program"
        rooms = [(sample.available - held.pending - line, bound, why)]
        if self.cap is not None:
            rooms.append((self._below_cap(held), Bound.CAP, f"the cap is {format_size(self.cap)}"))
        if now < self._foreground.calm_at and sample.free is not None:
            beyond = sample.free - held.pending - self.limits.cushion
            rooms.append((beyond, Bound.FOREGROUND, "other programs need the memory for their files"))
        room, bound, why = min(rooms, key=lambda bounded: bounded[0])
        return align_down(max(0, room), self._chunk), bound, why

    def _grant_line(self, sample: Sample, now: float) -> tuple[int, Bound, str]:
        if self._stalled(sample):
            return self.limits.roomy, Bound.STALL, "processes stall on memory"
        if now < self._calm_at:
            return self.limits.high, Bound.PRESSED, "memory was short a moment ago"
        return self.limits.low, Bound.LEVEL, "the rest is kept free for others"

    def _below_cap(self, held: Holdings) -> int:
        return held.granted + (1 << 62) if self.cap is None else max(0, self.cap - held.granted)

    # ---- what others ask for

    def lacking(self, sample: Sample, held: Holdings, *, size: int, now: float) -> int:
        """Return the bytes to recall so that others can take `size` and memory is not short after it."""
        level = sample.available - held.pending - self._reserved(now)
        return min(max(0, size + self.limits.low - level), held.granted)

    def reserve(self, size: int, *, until: float, now: float) -> None:
        """Make no grant from `size` bytes until then. Raises ValueError beyond MAX_RESERVATIONS."""
        self._reserved(now)
        if len(self._reservations) >= MAX_RESERVATIONS:
            raise ValueError("too many reservations")
        self._reservations.append((until, size))

    def _reserved(self, now: float) -> int:
        """Return the bytes set aside for others; forgets what has ended."""
        if self._reservations:
            self._reservations = [kept for kept in self._reservations if kept[0] > now]
        return sum(size for _, size in self._reservations)

    # ---- recalls

    def recall(self, sample: Sample, held: Holdings, *, now: float) -> RecallDecision | None:
        """Return what should come back now, or None. Starts the cool-down and the pressed time."""
        self._foreground.look(sample, now=now)
        level = sample.available - held.pending
        if level >= self.limits.low:
            self._sunk_until = now
        if held.granted == 0 or now < self._next_recall:
            return None
        decision = self._by_level(sample, held, level, now)
        if decision is not None:
            self._calm_at = now + self.limits.calm
        else:
            decision = self._by_cap(held) or self._for_foreground(sample, held)
        if decision is not None:
            self._next_recall = now + self._wait(decision)
        return decision

    def recalled(self, *, asked: int | None, returned: int, now: float, gentle: bool = False) -> None:
        """Note the outcome of a recall; `asked` None when a person or a client asked for it.

        Starts or extends the hold. A recall that brought less than asked (the rest is in use by running
        requests) doubles the time to the next one, because asking again at once brings nothing; but a
        gentle one costs nobody anything, and is repeated as soon as a request may have ended.
        """
        self._set_aside = returned + (self._set_aside if now < self._hold_until else 0)
        self._hold_until = now + self.limits.hold
        if asked is None:
            self._unwanted = True
            return
        short = returned < asked
        if gentle:
            self._next_recall = now + (self.limits.cooldown if short else 0.0)
            return
        self._misses = min(self._misses + 1, _MAX_MISSES) if short else 0
        self._next_recall = now + self.limits.cooldown * 2**self._misses

    def headroom(self, sample: Sample, held: Holdings, *, now: float) -> int:
        """Return the bytes that others may still take before a recall may start (0: none)."""
        room = sample.available - held.pending - self._trigger(now)
        if sample.free is not None and sample.refaulted is not None:
            room = min(room, sample.free - self.limits.cushion)
        return max(0, room)

    def period(self, sample: Sample, held: Holdings, *, now: float) -> float:
        """Return the seconds until memory should be looked at again, when nothing was recalled now."""
        seconds = self.headroom(sample, held, now=now) / _APPETITE
        return min(max(seconds, SHORTEST_PERIOD), LONGEST_PERIOD)

    def _by_level(self, sample: Sample, held: Holdings, level: int, now: float) -> RecallDecision | None:
        trigger = self._trigger(now)
        if level < trigger:
            reason = f"{format_size(max(0, level))} available, below {format_size(trigger)}"
            return RecallDecision(min(self.limits.high - level, held.granted), reason)
        if self._stalled(sample) and level < self.limits.roomy and now >= self._next_stall_recall:
            self._next_stall_recall = now + self.limits.stall_cooldown
            size = min(self.limits.high - self.limits.low, self.limits.roomy - level, held.granted)
            return RecallDecision(
                size, f"processes stalled on memory {sample.stall:.0f} % of the last ten seconds"
            )
        return None

    def _by_cap(self, held: Holdings) -> RecallDecision | None:
        if self.cap is None or held.granted <= self.cap:
            return None
        reason = f"{format_size(held.granted)} is granted, the cap is {format_size(self.cap)}"
        return RecallDecision(held.granted - self.cap, reason)

    def _for_foreground(self, sample: Sample, held: Holdings) -> RecallDecision | None:
        wanted = min(self._foreground.wanted(sample), held.granted)
        if not wanted:
            return None
        rate = format_size(int(self._foreground.rate))
        reason = f"other programs read back {rate} a second that the OS had dropped for lack of memory"
        return RecallDecision(wanted, reason, gentle=True)

    def _wait(self, decision: RecallDecision) -> float:
        """Return the seconds to the next recall, should this one's outcome never be told."""
        return self.limits.cooldown if decision.gentle else self.limits.cooldown * 2**self._misses

    def _trigger(self, now: float) -> int:
        """Return the line below which the level starts a recall."""
        return self._sunk_to if now < self._sunk_until else self.limits.low

    def _stalled(self, sample: Sample) -> bool:
        return sample.stall is not None and sample.stall >= self.limits.stall
