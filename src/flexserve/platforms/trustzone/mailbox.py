"""The secure world's end of the monitor's mailbox: commands go out, events come in.

The mailbox lies in the monitor's own memory (layout: abi/flex.toml), where the normal world cannot
reach it while protection is on. What stands there is the monitor's word; numbers in it that come from
the OS (how many pages it says it granted, how many it wants) are nothing but claims, for the readers
of the events to check.

Attachment. While nobody is attached the OS may have protection switched off, and can write the mailbox
then. Whether it could is told over the secure UART, which it never reaches: who asks (QUERY) gets an ON or
OFF, and an OFF before protection next goes, or an ON when the monitor next has made everything anew. So this
end is attached only while it has use for it, and a mailbox is believed from its ATTACHED event on, if no OFF
came between the question and that.

Memory ordering. Each ring has one writer and one reader. The writer stores a slot, then `head`; the
reader loads `head`, then the slot, then stores `tail`. Every one of these is an aligned word moved
by one instruction (a cast memoryview does that), and TSO, which the monitor's emulated CPUs get
from the host as we do, keeps such stores and loads in order. The one reordering that TSO allows
would lose a wake-up: our stores of `tail` and `sleeping` passing our load of `event_head`. Before that
stands a lock, whose atomic instruction is a full barrier. The monitor has its own between its `head`
and its look at `sleeping` and `tail`, so at least one of us sees what the other wrote. On a host with
weaker ordering the stores of `head` would need a release barrier that Python does not have.
"""

from __future__ import annotations

import dataclasses
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

from flexserve.errors import MonitorError, NormalWorldError
from flexserve.platforms.trustzone import abi, layout
from flexserve.platforms.trustzone.exchange import Attach, Command, Event, Gone, Quiet, event_of, slot_of
from flexserve.platforms.trustzone.ram import Ram

_WRAP = 0xFFFF_FFFF  # heads and tails run on and wrap
_SLOT_WORDS = abi.SLOT_BYTES // 8  # u64: kind and three arguments
_LOOK_AGAIN = 1.0  # seconds without a bell until it is quiet
# Seconds, and how often: events come in bursts, and each bell costs whoever calls the monitor much time.
_NAP, _NAPS = 100e-6, 10
_RING_AGAIN = 0.25  # seconds
_PATIENCE = 2.0  # seconds for the OS to have commands carried out when the ring is full
_PROTECTIONS = (abi.MeasuredByte.ON, abi.MeasuredByte.OFF, abi.MeasuredByte.TAMPERED)
_MEASURED = 1 + 64  # bytes of EL3's answer
_BELLS = 4096  # bytes taken from the secure UART at once


class Ring:
    """One ring, seen by either of its ends. Not thread-safe.

    `head` and `tail` are offsets of their words in `mailbox`, `slots` that of the first slot.
    """

    def __init__(self, mailbox: memoryview, *, head: int, tail: int, slots: int) -> None:
        self._words = mailbox.cast("I")
        self._slots = mailbox[slots : slots + abi.SLOTS * _SLOT_WORDS * 8].cast("Q")
        self._head, self._tail = head // 4, tail // 4

    def __len__(self) -> int:
        """Return how many slots are written and not read. Raises MonitorError for nonsense."""
        used = (self._words[self._head] - self._words[self._tail]) & _WRAP
        if used > abi.SLOTS:
            raise MonitorError("The monitor's mailbox is damaged.", hint="Restart the machine.")
        return used

    def put(self, kind: int, *arguments: int) -> bool:
        """Write one slot; return False, and change nothing, when the ring is full."""
        if len(self) == abi.SLOTS:
            return False
        head = self._words[self._head]
        first = head % abi.SLOTS * _SLOT_WORDS
        for index in range(_SLOT_WORDS - 1):
            self._slots[first + 1 + index] = arguments[index] if index < len(arguments) else 0
        self._slots[first] = kind
        self._words[self._head] = (head + 1) & _WRAP
        return True

    def take(self) -> tuple[int, int, int, int] | None:
        """Return the oldest slot (kind and three arguments) and free it; None when there is none."""
        if not len(self):
            return None
        tail = self._words[self._tail]
        first = tail % abi.SLOTS * _SLOT_WORDS
        kind, a, b, c = self._slots[first : first + _SLOT_WORDS].tolist()
        self._words[self._tail] = (tail + 1) & _WRAP
        return kind, a, b, c


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """What EL3 says of EL2: whether it protects (ON, OFF, TAMPERED), and SHA-256 of its image."""

    protection: abi.MeasuredByte
    digest: bytes


class Mailbox:
    """Commands to and events from the monitor of a running machine.

    `doorbell` is the machine's secure UART. One thread iterates `events`, which `attach` needs to go on;
    all else is thread-safe.
    """

    def __init__(self, ram: Ram, doorbell: socket.socket) -> None:
        self._doorbell = doorbell
        self._poll = select.poll()
        self._poll.register(doorbell, select.POLLIN)
        self._memory = ram.window(layout.mailbox_offset(ram.size), layout.MAILBOX_BYTES)
        self._header = layout.header(ram.size)
        self._words = self._memory.cast("I")
        commands, events = abi.HEADER_BYTES, abi.HEADER_BYTES + layout.RING_BYTES
        self._commands = Ring(
            self._memory, head=abi.OFFSET_COMMAND_HEAD, tail=abi.OFFSET_COMMAND_TAIL, slots=commands
        )
        self._events = Ring(
            self._memory, head=abi.OFFSET_EVENT_HEAD, tail=abi.OFFSET_EVENT_TAIL, slots=events
        )
        self._writing, self._barrier = threading.Lock(), threading.Lock()
        self._attaching = threading.Lock()
        self._changed = threading.Condition()
        self._protected: bool | None = None  # None: the monitor has not said
        self._said = b""  # by EL3, of EL2, as far as it came
        self._epoch = 0  # of the attachment, or of the attempt at one
        self._steady = False  # no OFF came since that attempt began
        self._attached = False
        #: One byte for each page of RAM: its state, as the monitor has it.
        self.states = ram.window(layout.states_offset(ram.size), ram.pages).toreadonly()

    @property
    def faults(self) -> int:
        """Accesses of the normal world that the monitor stopped since the machine started."""
        return self._memory.cast("Q")[abi.OFFSET_FAULTS // 8]

    @property
    def npu_state(self) -> int:
        """Whose the NPU is, by the monitor's word (abi.NpuState)."""
        return self._words[abi.OFFSET_NPU_STATE // 4]

    @property
    def npu_driver(self) -> bytes:
        """SHA-256 of what drives the NPU for us, by the monitor's word."""
        return bytes(self._memory[abi.OFFSET_NPU_DRIVER : abi.OFFSET_NPU_DRIVER + 32])

    @property
    def attached(self) -> bool:
        """Whether this end is attached."""
        return self._attached

    @property
    def waiting(self) -> int:
        """Commands that the monitor has not carried out yet."""
        return len(self._commands)

    # ---- attachment -----------------------------------------------------------------------------

    def protected(self, seconds: float) -> bool | None:
        """Ask whether protection is on; None when nobody answers within `seconds`."""
        with self._changed:
            self._protected = None
            self._send(abi.Byte.QUERY)
            self._changed.wait_for(lambda: self._protected is not None, seconds)
            return self._protected

    def measured(self, seconds: float) -> Measured | None:
        """Ask EL3 what EL2 is; None when no whole answer comes within `seconds`. By one thread at a time."""
        with self._changed:
            self._said = b""
            self._send(abi.MeasuredByte.ASK)
            self._changed.wait_for(lambda: len(self._said) >= _MEASURED, seconds)
            said = self._said
        if len(said) != _MEASURED or said[0] not in _PROTECTIONS:
            return None
        halves = [byte - abi.MeasuredByte.NIBBLE for byte in said[1:]]
        if not all(0 <= half < 16 for half in halves):
            return None
        digest = bytes(high << 4 | low for high, low in zip(halves[::2], halves[1::2], strict=True))
        return Measured(abi.MeasuredByte(said[0]), digest)

    def attach(self, seconds: float) -> bool:
        """See to it that this end is attached, and whoever was before it is gone; return whether it is.

        Raises MonitorError when the monitor is not ours.
        """
        deadline = time.monotonic() + seconds
        with self._attaching:
            while not self._attached and (left := deadline - time.monotonic()) > 0:
                if self.protected(left):
                    self._attempt(deadline)
                else:
                    self._switch_on(deadline)
            return self._attached

    def detach(self) -> None:
        """Give the attachment up; everything that is held goes back to the OS."""
        with self._changed:
            attached, self._attached = self._attached, False
        if attached:
            self.put(Gone(self._epoch))

    def _attempt(self, deadline: float) -> None:
        with self._changed:
            self._steady = self._protected is True
            self._epoch = secrets.randbits(63)  # so that no OS can have foreseen the event
        self._check_header()
        self.put(Gone(self._epoch), Attach(self._epoch))
        self._ring_until(lambda: self._attached or not self._steady, deadline)

    def _switch_on(self, deadline: float) -> None:
        """Have the OS call the monitor, which switches protection on first."""
        self._ring_until(lambda: bool(self._protected), deadline)

    def _ring_until(self, condition: Callable[[], bool], deadline: float) -> None:
        """Ring until `condition` holds; again, since the driver may just have come, or a ring been full."""
        with self._changed:
            while not condition() and (left := deadline - time.monotonic()) > 0:
                self._send(abi.Byte.RING)
                self._changed.wait_for(condition, min(left, _RING_AGAIN))

    def _check_header(self) -> None:
        """Raise MonitorError unless the monitor speaks our version and means this RAM."""
        found = bytes(self._memory[: len(self._header)])
        if found != self._header:
            raise MonitorError(
                "The monitor's mailbox is not where it should be, or of another version.",
                hint="Build the machine's parts again: `flexserve boot`.",
            )

    # ---- commands -------------------------------------------------------------------------------

    def put(self, *commands: Command) -> None:
        """Have the monitor carry out `commands`, in order, when the OS next asks it to.

        Raises NormalWorldError when the OS leaves the ring full, with some of them written perhaps.
        """
        with self._writing:
            for command in commands:
                self._put(command)
        self._send(abi.Byte.RING)

    def _put(self, command: Command) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not self._commands.put(*slot_of(command)):
            if time.monotonic() > deadline:
                raise NormalWorldError(
                    "The guest's kernel does not serve the secure world.",
                    hint="See whether its driver is loaded; restart the machine if it hangs.",
                    code="guest_silent",
                )
            self._send(abi.Byte.RING)
            time.sleep(0.001)

    def _send(self, byte: abi.Byte | abi.MeasuredByte) -> None:
        try:
            self._doorbell.send(bytes((byte,)), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return  # full of bells that were not heard yet: one more tells nothing new
        except OSError:
            return  # the machine is gone, which `events` says

    # ---- events ---------------------------------------------------------------------------------

    def events(self) -> Iterator[Event]:
        """Yield events as they come, while attached, for as long as the machine lives."""
        idle = 0
        while True:
            came = 0
            while (event := self._next()) is not None:
                came += 1
                yield event
            if came >= abi.SLOTS:
                # There was no room for more, and then the OS stops having commands carried out.
                self._ring_for_commands()
            idle = 0 if came else idle + 1
            if idle < _NAPS:
                time.sleep(_NAP)
                continue
            self._sleep(1)
            waiting = self._unread()
            rung = not waiting and self._poll.poll(_LOOK_AGAIN * 1000)
            self._sleep(0)
            if rung and not self._listen():
                return
            if not rung and not waiting:
                self._ring_for_commands()
                yield Quiet()

    def _ring_for_commands(self) -> None:
        if self._attached and len(self._commands):
            self._send(abi.Byte.RING)

    def _unread(self) -> bool:
        """Return whether an event waits; the monitor rings for none that comes after it."""
        try:
            return bool(self._protected) and len(self._events) > 0
        except MonitorError:
            if self._attached:
                raise
            return False

    def _next(self) -> Event | None:
        """Take the next event that can be believed."""
        while self._protected:
            try:
                slot = self._events.take()
            except MonitorError:
                if self._attached:
                    raise
                return None  # the OS may have written it; an OFF is to come
            if slot is None:
                return None
            kind, a, b, _ = slot
            if self._attached:
                return event_of(kind, a, b)
            if kind == abi.Event.ATTACHED and a == self._epoch:
                self._believe()
        return None

    def _believe(self) -> None:
        """Be attached, unless the OS could have written that we are: an OFF came first then."""
        self._listen()
        with self._changed:
            self._attached = self._steady
            self._changed.notify_all()

    def _listen(self) -> bool:
        """Take what came over the secure UART; return False when the machine is gone."""
        try:
            heard = self._doorbell.recv(_BELLS, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        with self._changed:
            for byte in heard:
                if byte in (abi.Byte.ON, abi.Byte.OFF):
                    self._protected = byte == abi.Byte.ON
                    self._steady &= self._protected
                elif byte >= abi.MeasuredByte.NIBBLE and len(self._said) < _MEASURED:
                    self._said += bytes((byte,))
            if self._attached and not self._steady:
                raise MonitorError("Protection went off under our feet.", hint="Restart the machine.")
            self._changed.notify_all()
        return heard != b""

    def lay_to_rest(self, seconds: float) -> None:
        """Say for a secure world that died that it is gone, if the monitor answers within `seconds`.

        For who plays the reset line; nobody may iterate `events`. Raises NormalWorldError when the OS
        does not serve its mailbox.
        """
        self._send(abi.Byte.QUERY)
        deadline = time.monotonic() + seconds
        while self._protected is None and self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            if not self._listen():
                return
        if self._protected:
            while self._events.take() is not None:
                continue  # without room for events no command is carried out
            self.put(Gone(0))
        self._sleep(0)  # nobody empties the doorbell now, and a full one would stop the monitor

    def _sleep(self, asleep: int) -> None:
        self._words[abi.OFFSET_SLEEPING // 4] = asleep
        with self._barrier:  # see above: no load after this is done before that store
            pass
