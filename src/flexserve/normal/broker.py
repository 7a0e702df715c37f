"""What the rest of the normal world knows of whoever decides about the secure world's memory: a Broker.

There are two. `normal.memory.MemoryBroker` decides itself, by what Linux says of its memory;
`normal.guest.GuestBroker` stands for the kernel of the secure world's own machine, which decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Protocol

from flexserve.normal.audit_log import AuditLog, Counters
from flexserve.normal.channel import MemoryCounter, WorldChannel
from flexserve.policy.pressure import Budget
from flexserve.protocol.memory import Recalled


@dataclasses.dataclass(frozen=True, slots=True)
class OsView:
    """What the OS says, as the normal world reads it."""

    total: int  # bytes of RAM, or of the cgroup's limit
    available: int  # bytes
    stall: float | None  # PSI "some avg10", percent
    rss: int  # bytes resident in the secure process, or handed over by the guest's kernel
    guest: bool = False  # it is the kernel of the secure world's machine that counts, not the host's


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


@dataclasses.dataclass(frozen=True, slots=True)
class Room:
    """What was done for a program that asked for memory."""

    asked: int  # bytes
    before: OsView
    after: OsView
    recall: RecallReport | None  # None: that much was available, or nothing is granted
    hold_seconds: float

    @property
    def freed(self) -> int:
        """Bytes by which the secure process shrank for it, as the OS counts it."""
        return self.recall.freed if self.recall else 0


class Broker(MemoryCounter, Protocol):
    """Grants to and recalls from the one secure world attached to it (or none). One event loop only."""

    @property
    def audit_log(self) -> AuditLog:
        """The last decisions, with their reasons."""

    @property
    def counters(self) -> Counters:
        """Sums of what was granted, refused and recalled."""

    @property
    def granted(self) -> int:
        """Bytes granted and not yet returned."""

    @property
    def cap(self) -> int | None:
        """Bytes that may be granted at most; None: no cap."""

    @property
    def pins(self) -> tuple[str, ...]:
        """The models whose weights a person wants kept."""

    def attach(self, channel: WorldChannel) -> None:
        """Serve the secure world behind `channel`; the one before it holds nothing any more.

        Raises NormalWorldError when the OS does not tell how much memory there is.
        """

    def detach(self) -> None:
        """Forget the secure world: it died, and the OS gets all it held. Always safe."""

    def look(self) -> OsView:
        """Return what the OS counts now. Raises NormalWorldError when it does not tell."""

    def budget(self) -> Budget:
        """Return what the secure world may hold now and why not more.

        Raises NormalWorldError when the OS does not tell.
        """

    def set_cap(self, cap: int | None) -> None:
        """Grant no more than `cap` bytes (None: no cap) from now on. What is beyond it is recalled soon.

        Raises CallerError where the broker does not decide that.
        """

    def set_pins(self, models: Iterable[str]) -> None:
        """Keep the weights of `models`, and of no others, as long as anything else can be given up.

        Raises CallerError and NormalWorldError (they cannot be written down), and changes nothing then.
        """

    async def recall(self, demand: int | None, *, deadline: float) -> RecallReport:
        """Recall `demand` bytes (None: all that no running request uses) within `deadline` seconds.

        Returns what really came back. Raises PeerError when the secure world is down or silent,
        NormalWorldError when the OS does not tell.
        """

    async def make_room(self, size: int, *, deadline: float, hold: float) -> Room:
        """Have `size` bytes available for another program, and grant none of them for `hold` seconds.

        What is missing is recalled within `deadline` seconds; the report says what the OS counts after
        it, and for how long it is held. Raises CallerError for more than there is, QueueFullError when too
        many programs hold memory, PeerError when the secure world is silent, NormalWorldError when the OS
        does not tell.
        """

    async def watch(self) -> None:
        """Recall under pressure, for ever."""
