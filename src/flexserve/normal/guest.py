"""The memory broker where a guest's kernel decides about memory.

On the TrustZone machine grants and recalls are between the secure world and the kernel of the machine:
its allocator hands pages over, its shrinker takes them back. What is left for a program of the normal
world is to ask for memory on a person's behalf, to measure what came, and to say how things are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

import structlog

from flexserve.errors import CallerError, NormalWorldError
from flexserve.normal.attached import AttachedWorld
from flexserve.normal.audit_log import AuditLog, Counters
from flexserve.normal.broker import Broker, OsView, RecallReport, Room
from flexserve.normal.channel import WorldChannel
from flexserve.normal.pins import Pins
from flexserve.platforms.ports import NormalMemory
from flexserve.policy.pressure import Bound, Budget
from flexserve.protocol.launch import SecureOptions
from flexserve.protocol.memory import Grant, NeedMemory, Recalled, Returned, Spare, WantSpare
from flexserve.units import format_size

_REASON = "the guest's kernel decides"

_log = structlog.get_logger(__name__)


class SecureCore(Protocol):
    """A machine whose secure core runs the secure world (emulator.machine.Machine, emulator.inner_core)."""

    @property
    def program(self) -> str:
        """The module that answers for the secure world: it, or the client of one that is inside."""

    def renew(self) -> None:
        """Have the machine ready for the next secure world. May take seconds.

        Raises MachineGoneError when the machine has ended for good, NormalWorldError when it does not boot.
        """

    def secure_options(self, options: SecureOptions) -> SecureOptions:
        """Return `options` of a secure world on this machine: those by which it finds it are added."""

    def reset_secure_core(self) -> None:
        """Have the guest get back what a dead secure world held. Raises NormalWorldError."""

    def memory(self) -> NormalMemory:
        """Return the guest's view of its memory; what is charged is what its kernel handed over."""


class GuestBroker(Broker):
    """The Broker where the guest's kernel decides: it grants nothing, keeps no account and sets no bounds."""

    def __init__(self, core: SecureCore, *, pins: Pins | None = None) -> None:
        self._core = core
        self._memory = core.memory()
        self._world = AttachedWorld(pins)
        self._handed_over = 0

    @property
    def audit_log(self) -> AuditLog:
        """The last decisions: recalls that people asked for."""
        return self._world.audit_log

    @property
    def counters(self) -> Counters:
        """Sums of what was refused and recalled."""
        return self._world.counters

    @property
    def granted(self) -> int:
        """Bytes that the guest's kernel had handed over at the last look."""
        return self._handed_over

    @property
    def cap(self) -> int | None:
        """None: the guest's kernel decides."""
        return None

    @property
    def pins(self) -> tuple[str, ...]:
        """The models whose weights a person wants kept."""
        return self._world.pins

    def attach(self, channel: WorldChannel) -> None:
        """Serve the secure world behind `channel`."""
        self._world.attach(channel)

    def detach(self) -> None:
        """Forget the secure world, and have the guest get back all it held. Always safe."""
        self._world.detach()
        try:
            self._core.reset_secure_core()
        except NormalWorldError as error:  # the next secure world says the same to the monitor
            _log.warning("memory_not_reset", reason=error.message)

    def look(self) -> OsView:
        """Return what the guest's kernel counts now. Raises NormalWorldError when it does not tell."""
        sample = self._memory.sample()
        self._handed_over = self._memory.charged(0)
        return OsView(sample.total, sample.available, sample.stall, self._handed_over, guest=True)

    def budget(self) -> Budget:
        """Return what the guest could hand over in all; how much of it it would, only it knows."""
        view = self.look()
        return Budget(view.rss + view.available, Bound.GUEST, _REASON)

    def set_cap(self, cap: int | None) -> None:
        """Raise CallerError: nothing here could keep it."""
        if cap is not None:
            raise CallerError(
                "On this machine the guest's kernel decides how much models may take.",
                hint="Start the server with a smaller --guest-memory.",
                code="no_cap",
            )

    def need(self, message: NeedMemory) -> Grant:
        """Refuse: a secure world on this machine has nothing to ask us for."""
        return self._world.refuse(message, Bound.GUEST, _REASON)

    def spare(self, message: WantSpare) -> Spare:
        """Return nothing: the guest's kernel does not say what it could do without."""
        return Spare(message.serial, 0)

    def returned(self, message: Returned) -> None:
        """Take no account."""

    def recalled(self, message: Recalled) -> None:
        """Count what came back on demand."""
        self.counters.recalled += message.returned

    def set_pins(self, models: Iterable[str]) -> None:
        """Keep the weights of `models`, and of no others, as Broker.set_pins."""
        self._world.set_pins(models)

    async def recall(self, demand: int | None, *, deadline: float) -> RecallReport:
        """Recall `demand` bytes, or all that no running request uses, as Broker.recall."""
        return await self._recall(demand, deadline, reason="asked for")

    async def make_room(self, size: int, *, deadline: float, hold: float) -> Room:
        """Have `size` bytes available in the guest now. They are not held: its kernel gives them to any."""
        del hold
        before, recalled = self.look(), None
        if size > before.total:
            raise CallerError(f"The guest has {format_size(before.total)} of memory.", hint="Ask for less.")
        lacking = min(size - before.available, before.rss)
        if lacking > 0 and self._world.channel is not None:
            recalled = await self._recall(lacking, deadline, reason="another program asked for memory")
        return Room(size, before, self.look(), recalled, hold_seconds=0)

    async def watch(self) -> None:
        """Wait for ever: the guest's kernel watches."""
        await asyncio.Event().wait()

    async def _recall(self, demand: int | None, deadline: float, *, reason: str) -> RecallReport:
        return await self._world.recall(
            demand, deadline, look=self.look, held=self._handed_over, reason=reason
        )
