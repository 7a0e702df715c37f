"""The guest's kernel as the secure world deals with it: it grants memory, and asks for it back.

On the TrustZone machine no program of the normal world decides about memory: the kernel of the
machine does, by its own allocator and its own shrinker. What it grants waits unused in the pool of
`GuestPages` until Flex-Mem commits it, so the pool follows Flex-Mem's count of granted chunks.
"""

from __future__ import annotations

from collections.abc import Callable

from flexserve.platforms.trustzone.exchange import Detached, Event, Pressure, Quiet
from flexserve.platforms.trustzone.guest_pages import GuestPages, Subscriber
from flexserve.platforms.trustzone.ram import PAGE
from flexserve.protocol.memory import Recall
from flexserve.secure_world.resources import Guest
from flexserve.serving.demands import Demands, Later
from flexserve.trusted.memory.flexmem import FlexMem
from flexserve.trusted.memory.ownership import PageState


class GuestGranter:
    """The granter of Flex-Mem: the guest's kernel."""

    def __init__(self, pages: GuestPages) -> None:
        self._pages = pages

    def request(self, size: int, minimum: int) -> int:
        """Ask the guest's kernel for `size` bytes; return the bytes that came."""
        return self._pages.want(size // PAGE, minimum // PAGE) * PAGE

    def returned(self, size: int, reason: str = "") -> None:
        """Record nothing: the guest's kernel has its pages when they are given back."""


class GuestDemands(Subscriber):
    """Meets what the guest's kernel asks for, out of `flexmem` and by `recall`. Thread-safe.

    `later` has what it is given called, one thing at a time, from the thread that answers recalls.
    """

    def __init__(
        self, guest: Guest, flexmem: FlexMem, recall: Callable[[Recall], object], later: Later
    ) -> None:
        self._npu, self._end, self._flexmem = guest.npu or Subscriber(), guest.end, flexmem
        self.demands = Demands(
            most=guest.pages.ram.size,
            held=lambda: flexmem.resident() + flexmem.bytes_in(PageState.GRANTED),
            return_unused=flexmem.return_unused,
            recall=recall,
            later=later,
        )

    def hear(self, event: Event) -> None:
        """Follow the monitor's events."""
        match event:
            case Pressure():
                self.demands.press(event.pages * PAGE, event.deadline_ms / 1000)
            case Detached():
                self.demands.want_everything()
            case Quiet():
                self._flexmem.settle()
        self._npu.hear(event)

    def needs_attachment(self) -> bool:
        """Return whether the NPU needs it."""
        return self._npu.needs_attachment()

    def end(self) -> None:
        """Have the machine's end acted on."""
        self._end()
