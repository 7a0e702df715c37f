"""The monitor in Python: the page table of abi/flex.toml behind the real mailbox's bytes, and nothing else.

What the table stands for (Stage-2, the SMMU, EL3) is tested elsewhere.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from typing import Protocol

from flexserve.platforms.trustzone import abi, layout
from flexserve.platforms.trustzone.abi import Byte, Command, Event, MeasuredByte, Notice, PageState, Status
from flexserve.platforms.trustzone.mailbox import Ring
from flexserve.platforms.trustzone.ram import BASE, PAGE, Ram

_NOT_THE_OSS = (PageState.GRANTED, PageState.SECURE, PageState.RECALLING)

Poll = tuple[Notice, int, int, int]


class NpuGate(Protocol):
    """The monitor's part in lending an NPU (testing.trustzone_npu). Under the monitor's lock."""

    @property
    def normal(self) -> bool:
        """Whether the OS has it."""

    def rebuild(self) -> None: ...

    def rebuild_tables(self) -> None:
        """Let it reach what the page states say."""

    def moved(self, first: int, pages: int, state: PageState) -> None:
        """Record the new state of pages of these numbers."""

    def go_on(self) -> bool:
        """Go on with what a reset interrupted; return whether it still does."""

    def carry_out(self, command: Command, a: int, b: int, serial: int) -> None: ...

    def leave(self) -> None:
        """Take it from a secure world that is gone."""


class FakeMonitor:
    """The calls of the OS and the commands of the secure world, on page states in RAM.

    Thread-safe, one call at a time, as under the real one's lock.
    """

    def __init__(self, ram: Ram, bell: socket.socket) -> None:
        self.ram = ram
        self.hidden = layout.hidden_offset(ram.size)
        self.protected = True
        self.image, self.tampered = bytes(range(32)), False  # of what EL2 is started; whether it was altered
        self._asked = False  # since the secure world was told of a change
        self._bell = bell
        self.lock = threading.RLock()
        self._notices: deque[Poll] = deque()
        self._attached = False
        self.states = ram.window(layout.states_offset(ram.size), ram.pages)
        self.mailbox = ram.window(layout.mailbox_offset(ram.size), layout.MAILBOX_BYTES)
        rings = abi.HEADER_BYTES
        self._commands = Ring(
            self.mailbox, head=abi.OFFSET_COMMAND_HEAD, tail=abi.OFFSET_COMMAND_TAIL, slots=rings
        )
        self._events = Ring(
            self.mailbox,
            head=abi.OFFSET_EVENT_HEAD,
            tail=abi.OFFSET_EVENT_TAIL,
            slots=rings + layout.RING_BYTES,
        )
        self.npu: NpuGate | None = None
        self._rebuild()

    def _rebuild(self) -> None:
        """Make everything as if new, as EL3 has it done when protection goes on."""
        hidden = self.hidden // PAGE
        self.states[:hidden] = bytes([PageState.NORMAL]) * hidden
        self.states[hidden:] = bytes([PageState.MONITOR]) * (self.ram.pages - hidden)
        header = layout.header(self.ram.size)
        self.mailbox[:] = header + bytes(len(self.mailbox) - len(header))
        self._notices.clear()
        self._attached = False
        if self.npu is not None:
            self.npu.rebuild()

    # ---- protection, and the other end of the secure UART

    def relax(self) -> Status:
        """Switch protection off, if nobody needs it: the OS can write everything then."""
        with self.lock:
            used = any(self.counts()[state] for state in _NOT_THE_OSS)
            if self._attached or used or (self.npu is not None and not self.npu.normal):
                return Status.HELD
            self._tell(Byte.OFF)
            self.protected = False
            return Status.OK

    def _protect(self) -> None:
        if not self.protected:
            self._rebuild()
            self.protected = True
            self._tell(Byte.ON)

    def hear(self, byte: int) -> None:
        if byte == Byte.QUERY:
            self._send(Byte.ON if self.protected else Byte.OFF)
            self._asked = True

        elif byte == MeasuredByte.ASK:
            state = MeasuredByte.ON if self.protected else MeasuredByte.OFF
            halves = (half for each in self.image for half in (each >> 4, each & 15))
            for said in (
                MeasuredByte.TAMPERED if self.tampered else state,
                *(0x80 | half for half in halves),
            ):
                self._send(said)

    def _tell(self, byte: Byte) -> None:
        if self._asked:
            self._send(byte)
        self._asked = False

    def _send(self, byte: int) -> None:
        with contextlib.suppress(OSError):
            self._bell.send(bytes((byte,)), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    # ---- calls of the OS

    def grant(self, ipa: int, pages: int) -> Status:
        if not self._attached:
            return Status.DENIED
        return self._call(PageState.NORMAL, PageState.GRANTED, ipa, pages, Event.GRANTED)

    def give_back(self, ipa: int, pages: int) -> Status:
        with self.lock:
            status = self._check_unused(ipa, pages)
            if status is Status.OK:
                first = (ipa - BASE) // PAGE
                self._become(PageState.NORMAL, first, pages)
                self.tell(Event.TAKEN, ipa, pages)
            return status

    def take(self, ipa: int, pages: int) -> Status:
        with self.lock:
            status = self._check(PageState.RECALLING, ipa, pages)
            if status is Status.OK:
                self.ram.window(ipa - BASE, pages * PAGE)[:] = bytes(pages * PAGE)
                status = self._call(PageState.RECALLING, PageState.NORMAL, ipa, pages, Event.TAKEN)
            return status

    def answer(self, serial: int, pages: int) -> None:
        self.tell(Event.ANSWER, serial, pages)

    def pressure(self, pages: int, deadline_ms: int) -> None:
        self.tell(Event.PRESSURE, pages, deadline_ms)

    def detach(self) -> None:
        self.tell(Event.DETACHED)

    def poll(self) -> Poll:
        with self.lock:
            self._protect()
            for _ in range(64):
                if len(self._events) == abi.SLOTS or (command := self._commands.take()) is None:
                    break
                self._carry_out(*command)
            waits = self.npu is not None and self.npu.go_on()
            if self._notices:
                return self._notices.popleft()
            more = len(self._commands) and len(self._events) < abi.SLOTS
            return (Notice.MORE if more else Notice.WAIT if waits else Notice.NONE), 0, 0, 0

    def counts(self) -> dict[PageState, int]:
        with self.lock:
            states = bytes(self.states)
            return {state: states.count(state) for state in PageState}

    def tell(self, event: Event, *arguments: int) -> None:
        """Tell the secure world, and wake it when it sleeps. Waits for room, as a driver told BUSY does.

        Nothing is told while nobody is attached.
        """
        while self._attached:
            with self.lock:
                if self._events.put(event, *arguments):
                    break
            time.sleep(0.001)
        if self.mailbox.cast("I")[abi.OFFSET_SLEEPING // 4] and len(self._events) <= 1:
            self._send(Byte.EVENT)

    # ---- pages

    def _check(self, state: PageState, ipa: int, pages: int) -> Status:
        if not self.ram.holds(ipa, pages) or pages > abi.CALL_PAGES_MAX:
            return Status.INVALID
        first = (ipa - BASE) // PAGE
        return Status.OK if self.states[first : first + pages] == bytes([state]) * pages else Status.DENIED

    def _check_unused(self, ipa: int, pages: int) -> Status:
        """Check what is to be RETURNed: pages of the OS may lie between those that were never used."""
        if not self.ram.holds(ipa, pages) or pages > abi.CALL_PAGES_MAX:
            return Status.INVALID
        found = bytes(self.states[(ipa - BASE) // PAGE :][:pages])
        unused = found[0] == found[-1] == PageState.GRANTED and {*found} <= {
            PageState.GRANTED,
            PageState.NORMAL,
        }
        return Status.OK if unused else Status.DENIED

    def _move(self, old: PageState, new: PageState, ipa: int, pages: int) -> Status:
        status = self._check(old, ipa, pages)
        if status is Status.OK:
            self._become(new, (ipa - BASE) // PAGE, pages)
        return status

    def _become(self, state: PageState, first: int, pages: int) -> None:
        self.states[first : first + pages] = bytes([state]) * pages
        if self.npu is not None:
            self.npu.moved(first, pages, state)

    def notify(self, notice: Notice, *arguments: int) -> None:
        """Have the OS told by one of its next polls."""
        a, b, c, *_ = *arguments, 0, 0, 0
        self._notices.append((notice, a, b, c))

    def _call(self, old: PageState, new: PageState, ipa: int, pages: int, event: Event) -> Status:
        with self.lock:
            status = self._move(old, new, ipa, pages)
            if status is Status.OK:
                self.tell(event, ipa, pages)
            return status

    # ---- commands of the secure world

    def _carry_out(self, kind: int, a: int, b: int, c: int) -> None:  # a case for each
        match kind:
            case Command.GONE:
                self._attached = False
                if self.npu is not None:
                    self.npu.leave()
                secure = bytes([PageState.SECURE])
                self.states[:] = bytes(self.states).replace(secure, bytes([PageState.RECALLING]))
                if self.npu is not None:
                    self.npu.rebuild_tables()
                self._notices.append((Notice.GONE, a, 0, 0))
            case Command.ATTACH if not self._attached:
                self._attached = True
                self.tell(Event.ATTACHED, a)
                self._notices.append((Notice.ATTACHED, a, 0, 0))
            case Command.WANT if self._attached:
                self._notices.append((Notice.WANT, a, b, c))
            case Command.COMMIT if self._attached:
                self.done(c, self._move(PageState.GRANTED, PageState.SECURE, a, b))
            case Command.RECALL if self._attached:
                status = self._move(PageState.SECURE, PageState.RECALLING, a, b)
                if status is Status.OK:
                    self._notices.append((Notice.OFFER, a, b, 0))
                self.done(c, status)
            case Command.REFUSE if self._attached:
                status = self._check_unused(a, b)
                if status is Status.OK:
                    self._notices.append((Notice.UNWANTED, a, b, 0))
                self.done(c, status)
            case Command.COMMIT | Command.RECALL | Command.REFUSE:
                self.done(c, Status.DENIED)
            case Command.NPU_WANT | Command.NPU_DRIVE | Command.NPU_RELEASE:
                self._carry_out_of_npu(Command(kind), a, b, c if kind == Command.NPU_DRIVE else a)

    def _carry_out_of_npu(self, command: Command, a: int, b: int, serial: int) -> None:
        if self._attached and self.npu is not None:
            self.npu.carry_out(command, a, b, serial)
        else:
            self.done(serial, Status.DENIED)

    def done(self, serial: int, status: Status) -> None:
        """Tell what came of a command."""
        self.tell(Event.DONE, serial, status & (1 << 64) - 1)
