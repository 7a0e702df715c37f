"""What the device shows of itself: its window of registers, and the control page that is the monitor's.

Both are pages of RAM, so nothing happens when a word is written until the device looks, and what it
shows can be overwritten: it says it again at its next look, and keeps what it goes by to itself.
"""

from __future__ import annotations

import threading

from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.abi import NpuRegister

_fence = threading.Lock()


def fence() -> None:
    """Order all memory accesses before against all after: a locked instruction on x86-64."""
    with _fence:
        pass


class Window:
    """The 32-bit registers, by their offsets in bytes."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._words = memory.cast("I")

    def __getitem__(self, register: NpuRegister) -> int:
        return self._words[register >> 2]

    def __setitem__(self, register: NpuRegister, value: int) -> None:
        self._words[register >> 2] = value

    def show(self, register: NpuRegister, value: int) -> None:
        """Write a register unless it says so already."""
        if self._words[register >> 2] != value:
            self._words[register >> 2] = value

    def clear(self, *, keep: NpuRegister) -> None:
        """Make every register 0 but one."""
        self._memory[:keep] = bytes(keep)
        rest = slice(keep + 4, len(self._memory))
        self._memory[rest] = bytes(rest.stop - rest.start)


class Control:
    """The monitor's page."""

    def __init__(self, memory: memoryview) -> None:
        self._longs = memory.cast("Q")
        self._words = memory.cast("I")

    @property
    def root(self) -> int:
        """Physical address of the table that every access passes; 0: nothing may be reached."""
        return self._longs[abi.NPU_OFFSET_ROOT // 8]

    @property
    def reset(self) -> int:
        """Counts up when the monitor wants a reset."""
        return self._words[abi.NPU_OFFSET_RESET // 4]

    @property
    def reset_done(self) -> int:
        """The reset that was done last."""
        return self._words[abi.NPU_OFFSET_RESET_DONE // 4]

    @reset_done.setter
    def reset_done(self, value: int) -> None:
        self._words[abi.NPU_OFFSET_RESET_DONE // 4] = value

    @property
    def flush(self) -> int:
        """Counts up when the monitor changed translations while the device was busy."""
        return self._words[abi.NPU_OFFSET_FLUSH // 4]

    @property
    def flush_done(self) -> int:
        """The flush before which no access is outstanding any more."""
        return self._words[abi.NPU_OFFSET_FLUSH_DONE // 4]

    @flush_done.setter
    def flush_done(self, value: int) -> None:
        self._words[abi.NPU_OFFSET_FLUSH_DONE // 4] = value

    def say_busy(self, busy: bool) -> None:
        """Say whether a job may look at `root` and reach memory."""
        self._words[abi.NPU_OFFSET_BUSY // 4] = busy
