"""The normal world's memory broker: it grants, counts and recalls what the secure world uses.

It decides by flexserve.policy.pressure and by what the OS says, keeps the sum of what it granted
(law 2), and measures every recall from the OS's side (law 5): the secure world's own claim is
passed on next to that, never instead of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable

import structlog

from flexserve.errors import CallerError, FlexServeError, NormalWorldError, PeerError, QueueFullError
from flexserve.normal.attached import AttachedWorld
from flexserve.normal.audit_log import AuditLog, Counters, Kind
from flexserve.normal.broker import Broker, OsView, RecallReport, Room
from flexserve.normal.channel import WorldChannel
from flexserve.normal.pins import Pins
from flexserve.platforms.ports import MemorySample, NormalMemory
from flexserve.policy.pressure import (
    LONGEST_PERIOD,
    SHORTEST_PERIOD,
    Bound,
    Budget,
    Holdings,
    Limits,
    PressurePolicy,
    RecallDecision,
)
from flexserve.protocol.memory import Grant, NeedMemory, Recalled, Returned, Spare, WantSpare
from flexserve.units import format_size

AUTOMATIC_DEADLINE = 0.5  # seconds the secure world has for a recall the policy decided

# A restore asks for memory chunk by chunk. One look serves the asks of this many seconds: what
# was granted since then is counted against it, so it is old but not wrong.
_LOOK_LASTS = 0.01

# The journal has a sample whenever memory changed by so much of the total, not more often than this.
_TOLD_CHANGE, _TOLD_EVERY = 0.02, 10.0  # seconds

_log = structlog.get_logger(__name__)


class MemoryBroker(Broker):
    """The Broker that decides itself.

    `memory` is read, never written. `cap` bounds what is granted (bytes; None: the policy's lines
    alone do).
    """

    def __init__(
        self,
        memory: NormalMemory,
        *,
        limits: Limits | None = None,
        cap: int | None = None,
        pins: Pins | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._memory = memory
        self._limits = limits
        self._cap = cap
        self._clock = clock
        self._world = AttachedWorld(pins, clock)
        self._policy: PressurePolicy | None = None
        self._last_look: tuple[float, MemorySample, int] | None = None  # when, and what _look returned
        self._told: tuple[float, MemorySample] | None = None  # the last sample in the journal, and when
        self._baseline = 0  # bytes resident in the secure process before its first grant
        self._granted = 0
        self._in_use = asyncio.Event()  # something is granted: there is something to watch
        self._hurry = asyncio.Event()  # the watch should look at once

    @property
    def audit_log(self) -> AuditLog:
        """The last decisions, with their reasons."""
        return self._world.audit_log

    @property
    def counters(self) -> Counters:
        """Sums of what was granted, refused and recalled."""
        return self._world.counters

    @property
    def granted(self) -> int:
        """Bytes granted and not yet returned."""
        return self._granted

    @property
    def cap(self) -> int | None:
        """Bytes that may be granted at most; None: no cap."""
        return self._cap

    @property
    def pins(self) -> tuple[str, ...]:
        """The models whose weights a person wants kept."""
        return self._world.pins

    def attach(self, channel: WorldChannel) -> None:
        """Serve the secure world behind `channel`; the one before it holds nothing any more.

        Raises NormalWorldError when the OS does not tell how much memory there is.
        """
        sample = self._memory.sample()
        limits = self._limits or Limits.for_machine(sample.total)
        if self._policy is None:
            self._policy = PressurePolicy(limits, chunk=channel.welcome.chunk or 1, cap=self._cap)
        self._baseline = self._memory.charged(channel.welcome.pid)
        self._last_look = None
        self._world.attach(channel)

    def detach(self) -> None:
        """Forget the secure world: it died, and the OS has all it held. Always safe."""
        if self._granted:
            self._world.note(Kind.RETURN, self._granted, "the secure world ended")
        self._world.detach()
        self._granted = 0
        self._in_use.clear()

    def look(self) -> OsView:
        """Return what the OS counts now. Raises NormalWorldError when it does not tell."""
        sample = self._memory.sample()
        return OsView(sample.total, sample.available, sample.stall, self._resident())

    def budget(self) -> Budget:
        """Return what the secure world may hold now and why not more.

        Raises NormalWorldError when the OS does not tell.
        """
        if self._policy is None:
            return Budget(0, Bound.UNKNOWN, "the server is still starting")
        sample, held = self._look(lasts=_LOOK_LASTS)
        return self._policy.budget(sample, held, now=self._clock())

    # ---- what people decide

    def set_cap(self, cap: int | None) -> None:
        """Grant no more than `cap` bytes (None: no cap) from now on. What is beyond it is recalled soon."""
        self._cap = cap
        if self._policy is not None:
            self._policy.cap = cap
        self._world.note(
            Kind.CAP, cap or 0, "there is no cap any more" if cap is None else "a person set the cap"
        )
        self._hurry.set()

    def set_pins(self, models: Iterable[str]) -> None:
        """Keep the weights of `models`, and of no others, as long as anything else can be given up.

        Raises CallerError and NormalWorldError (they cannot be written down), and changes nothing then.
        """
        self._world.set_pins(models)

    # ---- what the channel calls

    def need(self, message: NeedMemory) -> Grant:
        """Answer a demand for memory, now. Never raises: what cannot be decided is refused."""
        if self._policy is None:  # asked before the handshake was done with
            return self._world.refuse(message, Bound.UNKNOWN, "the server is still starting")
        try:
            sample, held = self._look(lasts=_LOOK_LASTS)
        except NormalWorldError as error:
            return self._world.refuse(message, Bound.UNKNOWN, error.message)
        decision = self._policy.grant(
            sample,
            held,
            size=message.size,
            minimum=min(message.minimum, message.size),
            now=self._clock(),
        )
        if message.size and not decision.size:
            return self._world.refuse(message, decision.bound or Bound.UNKNOWN, decision.reason)
        self._granted += decision.size
        self.counters.granted += decision.size
        self._in_use.set()
        self._world.note(Kind.GRANT, decision.size, decision.reason, self._world.computing)
        return Grant(message.serial, decision.size, decision.reason)

    def spare(self, message: WantSpare) -> Spare:
        """Say how much nobody needs, now. Never raises: what the OS does not tell is needed.

        Only what there is goes into the log: nobody waits for the answer.
        """
        size = 0
        if self._policy is not None:
            with contextlib.suppress(NormalWorldError):
                sample, held = self._look(lasts=0)
                size = self._policy.spare(sample, held, size=message.size, now=self._clock())
        if size:
            self._world.note(Kind.REWARM, size, message.reason)
        return Spare(message.serial, size)

    def returned(self, message: Returned) -> None:
        """Count memory that came back unasked. Raises PeerError when more came than was granted."""
        self._take_back(message.size, message.reason or "no longer needed")
        self.counters.returned += message.size

    def recalled(self, message: Recalled) -> None:
        """Count memory that came back on demand. Raises PeerError when more came than was granted."""
        self._take_back(message.returned, ", ".join(["recalled", *message.plan]))
        self.counters.recalled += message.returned

    # ---- recalls

    async def recall(self, demand: int | None, *, deadline: float) -> RecallReport:
        """Recall `demand` bytes (None: all that no running request uses) within `deadline` seconds.

        Returns what really came back. Raises PeerError when the secure world is down or silent,
        NormalWorldError when the OS does not tell.
        """
        report = await self._recall(demand, deadline, reason="asked for")
        if self._policy is not None:
            self._policy.recalled(asked=None, returned=report.claim.returned, now=self._clock())
        return report

    async def make_room(self, size: int, *, deadline: float, hold: float) -> Room:
        """Have `size` bytes available for another program, and grant none of them for `hold` seconds.

        What is missing is recalled within `deadline` seconds; the report says what the OS counts after
        it. Raises CallerError for more than there is, QueueFullError when too many programs hold memory,
        PeerError when the secure world is silent, NormalWorldError when the OS does not tell.
        """
        before, recalled = self.look(), None
        if size > before.total:
            there_is = format_size(before.total)
            raise CallerError(f"There are only {there_is} of memory here.", hint="Ask for less.")
        if self._policy is not None:
            now = self._clock()
            sample, held = self._look(lasts=0)
            lacking = self._policy.lacking(sample, held, size=size, now=now)
            try:
                self._policy.reserve(size, until=now + hold, now=now)
            except ValueError:
                raise QueueFullError(
                    "Too many programs hold memory.", hint="Wait until one of the holds ends."
                ) from None
            self._world.note(Kind.HOLD, size, f"another program asked for it, for {hold:.0f} s")
            if lacking and self._world.channel is not None:
                recalled = await self._recall(lacking, deadline, reason="another program asked for memory")
        return Room(size, before, self.look(), recalled, hold)

    async def watch(self) -> None:
        """Recall under pressure, for ever. Sleeps while nothing is granted."""
        while True:
            await self._in_use.wait()
            try:
                period = await self._relieve()
            except FlexServeError as error:  # the OS or the secure world; both are reported elsewhere too
                _log.warning("recall_failed", code=error.code, reason=error.message)
                period = LONGEST_PERIOD
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(period):
                    await self._hurry.wait()
            self._hurry.clear()

    async def _relieve(self) -> float:
        """Look once, recall if the policy says so, and return the seconds until the next look."""
        policy = self._policy
        assert policy is not None  # something is granted, so someone attached
        sample, held = self._look(lasts=0)
        decision = policy.recall(sample, held, now=self._clock())
        if decision is not None:
            await self._recall_for(policy, decision)
            return SHORTEST_PERIOD
        return policy.period(sample, held, now=self._clock())

    async def _recall_for(self, policy: PressurePolicy, decision: RecallDecision) -> None:
        returned, size, gentle = 0, decision.size, decision.gentle
        try:
            report = await self._recall(size, AUTOMATIC_DEADLINE, reason=decision.reason, gentle=gentle)
            returned = report.claim.returned
        finally:
            policy.recalled(asked=size, returned=returned, now=self._clock(), gentle=gentle)

    async def _recall(
        self, demand: int | None, deadline: float, *, reason: str, gentle: bool = False
    ) -> RecallReport:
        return await self._world.recall(
            demand, deadline, look=self.look, held=self._granted, reason=reason, gentle=gentle
        )

    # ---- counting

    def _look(self, *, lasts: float) -> tuple[MemorySample, Holdings]:
        """Return what the OS has and what the secure world holds, at most `lasts` seconds old.

        The secure process grows by little but what it was granted, so its growth since the
        handshake tells how much of the grants it has touched.
        """
        now = self._clock()
        fresh = self._last_look is None or now - self._last_look[0] >= lasts
        if self._last_look is None or fresh:
            resident = self._resident()
            self._last_look = now, self._memory.sample(), resident
        _, sample, resident = self._last_look
        used = min(self._granted, max(0, resident - self._baseline))
        if fresh:
            self._tell(sample, used, now)
        return sample, Holdings(self._granted, used)

    def _tell(self, sample: MemorySample, used: int, now: float) -> None:
        """Write a sample that tells something new into the journal, for flexserve.simulator.recording."""
        if self._told is not None:
            then, last = self._told
            change = abs(sample.available - last.available) + (sample.refaulted or 0) - (last.refaulted or 0)
            if now - then < _TOLD_EVERY or change < _TOLD_CHANGE * sample.total:
                return
        self._told = now, sample
        _log.info(
            "memory_sample",
            total=sample.total,
            available=sample.available,
            free=sample.free,
            refaulted=sample.refaulted,
            used=used,
        )

    def _take_back(self, size: int, reason: str) -> None:
        if size > self._granted:
            raise PeerError(
                f"The secure world returned {format_size(size)} of {format_size(self._granted)} granted.",
                hint="Restart the secure world.",
            )
        self._granted -= size
        if size:
            self._world.note(Kind.RETURN, size, reason)
        if not self._granted:
            self._in_use.clear()

    def _resident(self) -> int:
        """Return the bytes resident in the secure process; 0 without one."""
        return self._memory.charged(self._world.pid) if self._world.pid else 0
