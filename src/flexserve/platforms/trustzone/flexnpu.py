"""The NPU of the emulated machine: lent by its kernel, driven through the monitor.

    AWAY ──NPU_WANT──▶ COMING ──NPU_GRANTED──▶ HELD ──NPU_RELEASE──▶ LEAVING ──DONE──▶ AWAY

The driver of the normal world drives the NPU for us, too: a piece of its code that the monitor took, and
runs where it reaches the registers and nothing else. Which code that was the monitor tells, and any
other than what was built is refused for good. What it can do then is not start a job, or start
another than we wrote: the NPU reaches secure pages only, so it can spoil results and tell nobody. A digest
that is right rules that out as well.

That a job is over is read in the NPU's registers, which are ours while we hold it. After a release
that the monitor has confirmed, the NPU reaches nothing of ours, whatever it was doing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from flexserve.errors import InternalError, NormalWorldError, NpuLostError
from flexserve.platforms.ports import NpuState, Product
from flexserve.platforms.trustzone import abi, layout, npu_jobs
from flexserve.platforms.trustzone.abi import NpuInterrupt, NpuRegister, Status
from flexserve.platforms.trustzone.exchange import (
    Detached,
    Done,
    Event,
    NpuAsked,
    NpuDrive,
    NpuGranted,
    NpuRelease,
    NpuWant,
    Quiet,
)
from flexserve.platforms.trustzone.guest_pages import GuestPages, Subscriber
from flexserve.platforms.trustzone.secure_memory import TrustZoneMemory

_LONGEST_DEADLINE = 10.0  # seconds; what the OS says beyond it, it does not mean
_LEAVING_DRIVER = 1.0  # seconds for a driver that is unloaded
_FIRST_NAP, _LONGEST_NAP = 50e-6, 1e-3  # seconds between looks at the registers


class TrustZoneNpu(Subscriber):
    """The Npu port over the mailbox. `driver` is the SHA-256 of the code that must drive it.

    It has to hear what the monitor tells: it subscribes to `pages`, or its owner's subscriber passes on.
    """

    limits = npu_jobs.LIMITS

    def __init__(self, pages: GuestPages, memory: TrustZoneMemory, driver: bytes) -> None:
        self._pages, self._mailbox, self._memory, self._driver = pages, pages.mailbox, memory, driver
        window = pages.ram.window(layout.npu_window_offset(pages.ram.size), abi.NPU_WINDOW_BYTES)
        self._registers = window.toreadonly().cast("I")
        self.changed = threading.Condition()
        self._state = NpuState.AWAY
        self._wanted_back: float | None = None
        self._serial = 0  # of the NPU_WANT or NPU_RELEASE under way
        self._unsent = False  # the release could not be sent yet
        self._refused = False
        self._job = 0  # serial of its NPU_DRIVE; 0: none
        self._products = 0  # of it
        self._started = self._lost = False

    @property
    def state(self) -> NpuState:
        """Whose it is now. REFUSED: what drives it is not what was built."""
        return self._state

    @property
    def wanted_back(self) -> float | None:
        """When the guest's kernel wants it back, while HELD."""
        return self._wanted_back if self._state is NpuState.HELD else None

    # ---- coming and going -------------------------------------------------------------------------

    def ask(self) -> None:
        """Ask the guest's kernel for it, unless it has still to get it back itself."""
        with self.changed:
            at_home = self._mailbox.attached and self._mailbox.npu_state == abi.NpuState.NORMAL
            if self._state is not NpuState.AWAY or not at_home:
                return
            self._state, self._wanted_back = NpuState.COMING, None
            self._serial = self._pages.serial()
            self.changed.notify_all()
        try:
            self._mailbox.put(NpuWant(self._serial))
        except NormalWorldError:
            with self.changed:
                self._state = NpuState.AWAY
                self.changed.notify_all()

    def release(self) -> None:
        """Give it back, or want it no more; the monitor resets it, whatever it does."""
        self._leave(NpuState.COMING, NpuState.HELD)

    def _leave(self, *states: NpuState) -> None:
        with self.changed:
            if self._state not in states:
                return
            self._state, self._wanted_back = NpuState.LEAVING, None
            self._serial = self._pages.serial()
            self._lost, self._unsent = True, True
            self.changed.notify_all()
        self._send_release()

    def _send_release(self) -> None:
        try:
            self._mailbox.put(NpuRelease(self._serial))
            self._unsent = False
        except NormalWorldError:
            pass  # a kernel that hangs: tried again when it is quiet

    # ---- jobs -------------------------------------------------------------------------------------

    def submit(self, products: Sequence[Product], place: int) -> None:
        """Begin a job. Raises NpuLostError, or InternalError for one that cannot be."""
        with self.changed:
            if self._state is not NpuState.HELD:
                raise NpuLostError("The NPU is not here.")
            if self._job and not self._lost:
                raise InternalError("A job was begun before the one before it was over.")
            job = npu_jobs.write(products, place, self._memory.behind)
            self._job, self._products = self._pages.serial(), len(products)
            self._started = self._lost = False
        try:
            self._mailbox.put(NpuDrive(job.list, job.commands, job.directory, self._job))
        except NormalWorldError as error:
            self._job = 0
            raise NpuLostError("The guest's kernel does not have the NPU driven.") from error

    def wait(self, seconds: float) -> bool:
        """Wait for the end of the job. Raises NpuLostError when it failed."""
        deadline, nap = time.monotonic() + seconds, _FIRST_NAP
        with self.changed:
            if not self._job:
                raise InternalError("There is no job of the NPU to wait for.")
            self.changed.wait_for(lambda: self._started or self._lost, seconds)
        while not self._lost and self._started:
            if not self._registers[NpuRegister.OP_EN // 4]:
                return self._ended()
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(nap, left))
            nap = min(2 * nap, _LONGEST_NAP)
        if self._lost or self._pages.ended:
            self._job = 0
            raise NpuLostError("The NPU was given back, or does not take jobs.")
        return False

    def _ended(self) -> bool:
        raw = self._registers[NpuRegister.INT_RAW // 4]
        finished = self._registers[NpuRegister.TASK_STATUS // 4]
        with self.changed:
            self._job = 0
            lost = self._lost  # the registers are nobody's word then
        if lost or raw != NpuInterrupt.DONE or finished != self._products:
            raise NpuLostError(f"A job of the NPU failed ({raw:#x}, {finished} of {self._products}).")
        return True

    # ---- what the monitor tells -------------------------------------------------------------------

    def needs_attachment(self) -> bool:
        """Return whether it is on its way, here, or leaving."""
        return self._state in (NpuState.COMING, NpuState.HELD, NpuState.LEAVING)

    def hear(self, event: Event) -> None:
        """Follow the monitor's events."""
        with self.changed:
            stranger = self._note(event)
            self.changed.notify_all()
        if stranger:
            self._leave(NpuState.COMING)
        elif isinstance(event, Quiet) and self._unsent:
            self._send_release()

    def _note(self, event: Event) -> bool:
        """Record an event; return whether the NPU came with a driver that is not ours."""
        match event:
            case NpuGranted(serial) if self._state is NpuState.COMING and serial == self._serial:
                self._refused = self._mailbox.npu_driver != self._driver
                if self._refused:
                    return True
                self._state = NpuState.HELD
            case NpuAsked(milliseconds):
                self._want_back(min(milliseconds / 1000, _LONGEST_DEADLINE))
            case Detached():
                self._want_back(_LEAVING_DRIVER)
            case Done(serial, status) if serial == self._job != 0 and not self._lost:
                self._started, self._lost = status is Status.OK, status is not Status.OK
            case Done(serial) if serial == self._serial and self._state is NpuState.LEAVING:
                self._state = NpuState.REFUSED if self._refused else NpuState.AWAY
            case Done(serial) if serial == self._serial and self._state is NpuState.COMING:
                self._state = NpuState.AWAY  # it cannot be had now
        return False

    def _want_back(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        earlier = self._wanted_back
        self._wanted_back = deadline if earlier is None else min(earlier, deadline)
