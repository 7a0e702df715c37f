"""The secure side of the NPU in this process, with a clock on what the monitor tells it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from flexserve.errors import InternalError, NormalWorldError
from flexserve.platforms.linux import mman
from flexserve.platforms.ports import NpuState, Product
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.exchange import Done, Event, NpuGranted
from flexserve.platforms.trustzone.flexnpu import TrustZoneNpu
from flexserve.platforms.trustzone.guest_pages import GuestPages, Subscriber
from flexserve.platforms.trustzone.secure_memory import TrustZoneMemory
from flexserve.units import align_up

_ROWS, _DEPTH, _WIDTH = 8, 32, 34  # of a job that is all launch: one block of q8_0 in each row
_PATIENCE = 60.0  # seconds
_LOOK = 20e-6


class SecureNpuClient(Subscriber):
    """Has the NPU come, work and go; each method returns the seconds that it took. Begins `pages`.

    Holds some memory from the start, and so stays attached.
    """

    def __init__(self, pages: GuestPages, driver: bytes) -> None:
        memory = TrustZoneMemory(pages)
        self._mailbox, self._npu = pages.mailbox, TrustZoneNpu(pages, memory, driver)
        self._told, self._changed = 0.0, threading.Condition()
        self._awaited: Callable[[Event], bool] = lambda _event: False
        pages.start(self)
        matrix = align_up(_ROWS * _WIDTH, 4)
        size = self._npu.limits.place + 2 * matrix + 4 * _ROWS * _ROWS
        arena = memory.reserve(size)
        memory.commit(arena, 0, arena.size)
        self._place, a = arena.base, arena.base + self._npu.limits.place
        b, self._result = a + matrix, a + 2 * matrix
        self._product = Product(_ROWS, _ROWS, _DEPTH, a, _WIDTH, b, _WIDTH, self._result, 4 * _ROWS)

    def borrow(self) -> float:
        """NPU_WANT until NPU_GRANTED. Raises NormalWorldError when it does not come."""
        began = self._await(lambda event: isinstance(event, NpuGranted))
        self._npu.ask()
        seconds = self._heard() - began
        self._until(lambda: self._npu.state is not NpuState.COMING)
        if self._npu.state is not NpuState.HELD:
            raise InternalError("The NPU came with a driver that was not built here.", hint="Report this.")
        return seconds

    def launch(self) -> float:
        """Begin a job, from its description to NPU_DRIVE's DONE; its end is waited for beside."""
        result = mman.view(self._result, 4 * _ROWS * _ROWS)
        result[:] = b"\xff" * len(result)
        began = self._await(lambda event: isinstance(event, Done))
        self._npu.submit([self._product], self._place)
        seconds = self._heard() - began
        if not self._npu.wait(_PATIENCE) or any(result):
            raise InternalError("A job of the NPU did not end, or not well.", hint="Report this.")
        return seconds

    def give_back(self) -> float:
        """NPU_RELEASE until the OS has it."""
        began = time.monotonic()
        self._npu.release()
        self._until(lambda: self._mailbox.npu_state == abi.NpuState.NORMAL)
        seconds = time.monotonic() - began
        self._until(lambda: self._npu.state is NpuState.AWAY)
        return seconds

    def _await(self, awaited: Callable[[Event], bool]) -> float:
        """Note the time of the first such event from now on; return the time."""
        with self._changed:
            self._told, self._awaited = 0.0, awaited
        return time.monotonic()

    def needs_attachment(self) -> bool:
        """Return whether the NPU needs it."""
        return self._npu.needs_attachment()

    def hear(self, event: Event) -> None:
        """Pass an event on, and record when the one that is awaited came."""
        now = time.monotonic()
        self._npu.hear(event)
        with self._changed:
            if not self._told and self._awaited(event):
                self._told = now
                self._changed.notify_all()

    def _heard(self) -> float:
        with self._changed:
            if not self._changed.wait_for(lambda: self._told, _PATIENCE):
                raise _silence()
            return self._told

    @staticmethod
    def _until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise _silence()
            time.sleep(_LOOK)


def _silence() -> NormalWorldError:
    return NormalWorldError(
        "The guest's kernel does not lend its NPU, or does not get it back.",
        hint="Measure on a machine with nothing else to do.",
    )
