"""What brokers have in common: the secure world that is attached, what it is told, measured recalls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

import structlog

from flexserve.errors import PeerError
from flexserve.normal.audit_log import AuditLog, Counters, Kind
from flexserve.normal.broker import OsView, RecallReport
from flexserve.normal.channel import WorldChannel
from flexserve.normal.pins import Pins
from flexserve.policy.pressure import Bound
from flexserve.protocol.memory import Grant, NeedMemory

ANSWER_GRACE = 5.0  # seconds beyond the deadline until an unanswered recall is an error

_log = structlog.get_logger(__name__)


class AttachedWorld:
    """The secure world that a broker serves, or none. One event loop only.

    `channel` is None while there is none. `audit_log` and `counters` say what was decided.
    """

    def __init__(self, pins: Pins | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.channel: WorldChannel | None = None
        self.audit_log = AuditLog(clock=clock)
        self.counters = Counters()
        self._pins = pins or Pins()
        self._clock = clock
        self._fruitless = False  # the last recall was gentle and brought nothing
        self._recalling = asyncio.Lock()  # one recall at a time, so that the measurement is of one

    @property
    def pid(self) -> int:
        """The process id of the secure world; 0: there is none."""
        return self.channel.welcome.pid if self.channel is not None else 0

    @property
    def computing(self) -> str:
        """The model that is opened or computes now, by the secure world's word; "": none."""
        return self.channel.computing if self.channel is not None else ""

    @property
    def pins(self) -> tuple[str, ...]:
        """The pinned models."""
        return self._pins.names

    def attach(self, channel: WorldChannel) -> None:
        """Go on with the secure world behind `channel`, and tell it what is pinned."""
        self.channel = channel
        if self.pins:
            channel.pin(self.pins)

    def detach(self) -> None:
        """Go on without one. Always safe."""
        self.channel = None

    def set_pins(self, models: Iterable[str]) -> None:
        """Pin `models` and no others, as Broker.set_pins."""
        self._pins.replace(models)
        self.note(Kind.PIN, 0, f"pinned: {', '.join(self.pins) or 'nothing'}")
        if self.channel is not None and self.channel.error is None:
            self.channel.pin(self.pins)  # else the next secure world is told when it starts

    def refuse(self, message: NeedMemory, bound: Bound, reason: str) -> Grant:
        """Return the refusal of a demand, recorded."""
        refusals = self.counters.refusals
        refusals[bound.value] = refusals.get(bound.value, 0) + 1
        self.note(Kind.REFUSAL, message.size, reason, self.computing)
        return Grant(message.serial, 0, reason)

    async def recall(
        self,
        demand: int | None,
        deadline: float,
        *,
        look: Callable[[], OsView],
        held: int,
        reason: str,
        gentle: bool = False,
    ) -> RecallReport:
        """Recall `demand` bytes (None: all of the `held` that no running request uses), measured by `look`.

        Raises as Broker.recall.
        """
        async with self._recalling:
            channel = self.channel
            if channel is None:
                raise PeerError("The secure world is down.", hint="It is being restarted; retry in a moment.")
            if not (gentle and self._fruitless):  # else it is the one before, still wanting
                self.note(Kind.RECALL, held if demand is None else demand, reason)
            before, began = look(), self._clock()
            claim = await channel.recall(
                demand, deadline=deadline, timeout=deadline + ANSWER_GRACE, gentle=gentle, reason=reason
            )
            self._fruitless = gentle and not claim.returned
            self.counters.recalls += 1
            self.counters.recall_seconds += self._clock() - began
            report = RecallReport(claim, before, look())
            _log.info("recalled", claimed=claim.returned, freed=report.freed, elapsed_ms=claim.elapsed)
            return report

    def note(self, kind: Kind, size: int, reason: str, model: str = "") -> None:
        """Record a decision about `size` bytes, of `model` if they are one model's."""
        self.audit_log.note(kind, size, reason, model)
        _log.debug("memory", kind=kind.value, size=size, reason=reason, model=model)
