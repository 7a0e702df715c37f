"""The normal world's memory broker: it grants, counts and recalls what the secure world uses.

It decides by flexserve.core.pressure and by what the OS says, keeps the sum of what it granted
(law 2), and measures every recall from the OS's side (law 5): the secure world's own claim is
passed on next to that, never instead of it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import Callable

import structlog

from flexserve.core.pressure import Holdings, Limits, PressurePolicy, RecallDecision
from flexserve.errors import FlexServeError, NormalWorldError, PeerError
from flexserve.normal.channel import WorldChannel
from flexserve.platforms.ports import MemorySample, NormalMemory
from flexserve.units import GIB, format_size
from flexserve.world.messages import Grant, NeedMemory, Recalled, Returned

AUTOMATIC_DEADLINE = 0.5  # seconds the secure world has for a recall the policy decided
ANSWER_GRACE = 5.0  # seconds beyond the deadline until an unanswered recall is an error
MAX_DECISIONS = 256
_SHORTEST_PERIOD = 0.25  # seconds between looks at memory while it may become short …
_LONGEST_PERIOD = 2.0  # … and while it cannot
# A process that touches fresh memory takes about 1 GiB/s per core from the OS; looking again after
# half the time it needs to eat the headroom sees it coming. An idle server looks every 2 s.
_APPETITE = 2 * GIB  # bytes per second

# A restore asks for memory granule by granule. One look serves the asks of this many seconds: what
# was granted since then is counted against it, so it is old but not wrong.
_LOOK_LASTS = 0.01

_log = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """Something the broker decided: `kind` is "grant", "refusal", "recall" or "return"."""

    at: float  # seconds since the epoch
    kind: str
    size: int  # bytes
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class OsView:
    """What the OS says, as the normal world reads it."""

    total: int  # bytes of RAM, or of the cgroup's limit
    available: int  # bytes
    stall: float | None  # PSI "some avg10", percent
    rss: int  # bytes resident in the secure process


@dataclasses.dataclass(frozen=True, slots=True)
class RecallReport:
    """What a recall brought: the secure world's claim, and the OS's counters around it."""

    claim: Recalled
    before: OsView
    after: OsView

    @property
    def freed(self) -> int:
        """Bytes by which the secure process shrank, as the OS counts it."""
        return max(0, self.before.rss - self.after.rss)


class MemoryBroker:
    """Grants to and recalls from the one secure world attached to it (or none).

    `memory` is read, never written. All methods belong to one event loop.
    """

    def __init__(
        self,
        memory: NormalMemory,
        *,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._memory = memory
        self._limits = limits
        self._clock = clock
        self._policy: PressurePolicy | None = None
        self._channel: WorldChannel | None = None
        self._last_look: tuple[float, MemorySample, int] | None = None  # when, and what _look returned
        self._baseline = 0  # bytes resident in the secure process before its first grant
        self._granted = 0
        self._in_use = asyncio.Event()  # something is granted: there is something to watch
        self._recalling = asyncio.Lock()  # one recall at a time, so that the measurement is of one
        self.decisions: deque[Decision] = deque(maxlen=MAX_DECISIONS)

    @property
    def granted(self) -> int:
        """Bytes granted and not yet returned."""
        return self._granted

    def attach(self, channel: WorldChannel) -> None:
        """Serve the secure world behind `channel`; the one before it holds nothing any more.

        Raises NormalWorldError when the OS does not tell how much memory there is.
        """
        sample = self._memory.sample()
        limits = self._limits or Limits.for_machine(sample.total)
        if self._policy is None:
            self._policy = PressurePolicy(limits, granule=channel.welcome.granule or 1)
        self._channel = channel
        self._baseline = self._memory.charged(channel.welcome.pid)
        self._last_look = None

    def detach(self) -> None:
        """Forget the secure world: it died, and the OS has all it held. Always safe."""
        if self._granted:
            self._note("return", self._granted, "the secure world ended")
        self._channel = None
        self._granted = 0
        self._in_use.clear()

    def look(self) -> OsView:
        """Return what the OS counts now. Raises NormalWorldError when it does not tell."""
        sample = self._memory.sample()
        pid = self._channel.welcome.pid if self._channel is not None else 0
        rss = self._memory.charged(pid) if pid else 0
        return OsView(sample.total, sample.available, sample.stall, rss)

    # ---- what the channel calls

    def need(self, message: NeedMemory) -> Grant:
        """Answer a demand for memory, now. Never raises: what cannot be decided is refused."""
        if self._policy is None:  # asked before the handshake was done with
            return Grant(message.serial, 0, "the server is still starting")
        try:
            sample, held = self._look(lasts=_LOOK_LASTS)
        except NormalWorldError as error:
            return Grant(message.serial, 0, error.message)
        decision = self._policy.grant(
            sample,
            held,
            size=message.size,
            minimum=min(message.minimum, message.size),
            now=self._clock(),
        )
        self._granted += decision.size
        if decision.size:
            self._in_use.set()
        short = decision.size < message.size
        self._note("refusal" if short and not decision.size else "grant", decision.size, decision.reason)
        return Grant(message.serial, decision.size, decision.reason)

    def returned(self, message: Returned) -> None:
        """Count memory that came back unasked. Raises PeerError when more came than was granted."""
        self._take_back(message.size, "no longer needed")

    def recalled(self, message: Recalled) -> None:
        """Count memory that came back on demand. Raises PeerError when more came than was granted."""
        self._take_back(message.returned, "recalled")

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

    async def watch(self) -> None:
        """Recall under pressure, for ever. Sleeps while nothing is granted."""
        while True:
            await self._in_use.wait()
            try:
                period = await self._relieve()
            except FlexServeError as error:  # the OS or the secure world; both are reported elsewhere too
                _log.warning("recall_failed", code=error.code, reason=error.message)
                period = _LONGEST_PERIOD
            await asyncio.sleep(period)

    async def _relieve(self) -> float:
        """Look once, recall if the policy says so, and return the seconds until the next look."""
        policy = self._policy
        assert policy is not None  # something is granted, so someone attached
        sample, held = self._look(lasts=0)
        decision = policy.recall(sample, held, now=self._clock())
        if decision is not None:
            await self._recall_for(policy, decision)
            return _SHORTEST_PERIOD
        seconds = policy.headroom(sample, held, now=self._clock()) / _APPETITE
        return min(max(seconds, _SHORTEST_PERIOD), _LONGEST_PERIOD)

    async def _recall_for(self, policy: PressurePolicy, decision: RecallDecision) -> None:
        returned = 0
        try:
            report = await self._recall(decision.size, AUTOMATIC_DEADLINE, reason=decision.reason)
            returned = report.claim.returned
        finally:
            policy.recalled(asked=decision.size, returned=returned, now=self._clock())

    async def _recall(self, demand: int | None, deadline: float, *, reason: str) -> RecallReport:
        async with self._recalling:
            channel = self._channel
            if channel is None:
                raise PeerError("The secure world is down.", hint="It is being restarted; retry in a moment.")
            self._note("recall", self._granted if demand is None else demand, reason)
            before = self.look()
            claim = await channel.recall(demand, deadline=deadline, timeout=deadline + ANSWER_GRACE)
            report = RecallReport(claim, before, self.look())
            _log.info("recalled", claimed=claim.returned, freed=report.freed, elapsed_ms=claim.elapsed)
            return report

    # ---- counting

    def _look(self, *, lasts: float) -> tuple[MemorySample, Holdings]:
        """Return what the OS has and what the secure world holds, at most `lasts` seconds old.

        The secure process grows by little but what it was granted, so its growth since the
        handshake tells how much of the grants it has touched.
        """
        now = self._clock()
        if self._last_look is None or now - self._last_look[0] >= lasts:
            pid = self._channel.welcome.pid if self._channel is not None else 0
            resident = self._memory.charged(pid) if pid else 0
            self._last_look = now, self._memory.sample(), resident
        _, sample, resident = self._last_look
        used = min(self._granted, max(0, resident - self._baseline))
        return sample, Holdings(self._granted, used)

    def _take_back(self, size: int, reason: str) -> None:
        if size > self._granted:
            raise PeerError(
                f"The secure world returned {format_size(size)} of {format_size(self._granted)} granted.",
                hint="Restart the secure world.",
            )
        self._granted -= size
        if size:
            self._note("return", size, reason)
        if not self._granted:
            self._in_use.clear()

    def _note(self, kind: str, size: int, reason: str) -> None:
        self.decisions.append(Decision(time.time(), kind, size, reason))
        _log.debug("memory", kind=kind, size=size, granted=self._granted, reason=reason)
