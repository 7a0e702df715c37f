"""What the guest's kernel wants back: its driver says so in the ring (driver/flexmem/uapi/ring.h).

The kernel tells its monitor, too, and that tells the secure world. But there nobody decides what is given up.
"""

from __future__ import annotations

import struct
import threading
import time

from flexserve.platforms.trustzone.ram import PAGE
from flexserve.serving.demands import Demands

OFFSET = 2048  # bytes from the ring's start
LAYOUT = struct.Struct("<IIQ")  # how many there were, milliseconds, pages
ALL = (1 << 64) - 1  # pages
_LOOK = 0.005  # seconds between two looks: a demand is to be met within a few tens of milliseconds


class RingDemands:
    """Reads demands from `ring` and has `demands` meet them."""

    def __init__(self, ring: memoryview, demands: Demands) -> None:
        self._ring, self._demands = ring, demands
        self._seen = self._read()[0]

    def start(self) -> None:
        """Look for demands from now on, in a thread."""
        threading.Thread(target=self._watch, name="guest-demands", daemon=True).start()

    def look(self) -> None:
        """Have a demand met that is there and was not seen yet."""
        count, milliseconds, pages = self._read()
        if count == self._seen or self._read()[0] != count:
            return  # if it is being written, the next look sees it whole
        self._seen = count
        if pages == ALL:
            self._demands.want_everything()
        else:
            self._demands.press(pages * PAGE, milliseconds / 1000)

    def _read(self) -> tuple[int, int, int]:
        count, milliseconds, pages = LAYOUT.unpack_from(self._ring, OFFSET)
        return count, milliseconds, pages

    def _watch(self) -> None:
        while True:
            self.look()
            time.sleep(_LOOK)
