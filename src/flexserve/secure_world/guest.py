"""The guest's kernel as the secure world deals with it: it grants memory, and asks for it back.

On the TrustZone machine no program of the normal world decides about memory: the kernel of the
machine does, by its own allocator and its own shrinker. What it grants waits unused in the pool of
`GuestPages` until Flex-Mem commits it, so the pool follows Flex-Mem's count of granted chunks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from flexserve.platforms.trustzone.exchange import Detached, Event, Pressure, Quiet
from flexserve.platforms.trustzone.guest_pages import GuestPages, Subscriber
from flexserve.platforms.trustzone.ram import PAGE
from flexserve.protocol.memory import Recall
from flexserve.secure_world.resources import Guest
from flexserve.trusted.memory.flexmem import FlexMem
from flexserve.trusted.memory.ownership import PageState

_LONGEST_DEADLINE = 10.0  # seconds; what the OS says beyond it, it does not mean
_EVERYTHING = 10.0  # seconds for running requests to end when the driver leaves
_PAUSE = 0.1
_REASON = "the guest's kernel needed it"


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
        self,
        guest: Guest,
        flexmem: FlexMem,
        recall: Callable[[Recall], object],
        later: Callable[[Callable[[], None]], None],
    ) -> None:
        self._pages, self._npu = guest.pages, guest.npu or Subscriber()
        self._end = guest.end
        self._flexmem, self._recall, self._later = flexmem, recall, later
        self._lock = threading.Lock()
        self._asked: Pressure | None = None  # and not yet given

    def hear(self, event: Event) -> None:
        """Follow the monitor's events."""
        match event:
            case Pressure():
                self._press(event)
            case Detached():
                self._later(self._give_everything)
            case Quiet():
                self._flexmem.settle()
        self._npu.hear(event)

    def needs_attachment(self) -> bool:
        """Return whether the NPU needs it."""
        return self._npu.needs_attachment()

    def end(self) -> None:
        """Have the machine's end acted on."""
        self._end()

    def _press(self, asked: Pressure) -> None:
        """Record a demand. One that comes before the last was met is the same one, grown or more urgent."""
        with self._lock:
            before, self._asked = self._asked, asked
            if before is not None:
                pages, deadline = (max(asked.pages, before.pages), min(asked.deadline_ms, before.deadline_ms))
                self._asked = Pressure(pages, deadline)
        if before is None:
            self._later(self._relieve)

    def _relieve(self) -> None:
        with self._lock:
            asked, self._asked = self._asked, None
        if asked is not None:
            size = min(asked.pages, self._pages.ram.pages) * PAGE
            self._give(size, min(asked.deadline_ms / 1000, _LONGEST_DEADLINE))

    def _give_everything(self) -> None:
        """Give until nothing is left, or running requests hold on for too long."""
        end = time.monotonic() + _EVERYTHING
        while self._held() and time.monotonic() < end:
            self._give(self._pages.ram.size, _LONGEST_DEADLINE)
            time.sleep(_PAUSE)

    def _give(self, size: int, seconds: float) -> None:
        """Give `size` bytes: first what is granted and unused, whose pages the guest gets as they are."""
        size -= self._flexmem.return_unused()
        if size > 0:
            self._recall(Recall(serial=0, demand=size, deadline=seconds * 1000, reason=_REASON))

    def _held(self) -> int:
        return self._flexmem.resident() + self._flexmem.bytes_in(PageState.GRANTED)
