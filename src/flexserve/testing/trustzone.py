"""A machine without QEMU: a monitor and a driver in Python behind the real mailbox's bytes.

The secure world cannot tell it from the emulated one: it maps the same RAM, reads the same page
states, writes the same rings and hears the same doorbell. The monitor here is the page table of
abi/flex.toml and nothing else; what it stands for (Stage-2, the SMMU, EL3) is tested elsewhere.

    with FakeMachine(ram_bytes=64 * MIB) as machine:
        memory = TrustZoneMemory(machine.pages())

`Driver` is an OS that keeps its word. The hostile ones derive from it.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Protocol, Self

from flexserve.errors import MachineGoneError
from flexserve.platforms.ports import MemorySample, NormalMemory
from flexserve.platforms.trustzone import abi, layout
from flexserve.platforms.trustzone.abi import Byte, Command, Event, Notice, PageState, Status
from flexserve.platforms.trustzone.guest_pages import GuestPages
from flexserve.platforms.trustzone.mailbox import Mailbox, Ring
from flexserve.platforms.trustzone.ram import BASE, PAGE, Ram
from flexserve.units import MIB

_LEAVINGS = b"left behind by the OS "

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
        """Take note of the new state of pages of these numbers."""

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

    def _tell(self, byte: Byte) -> None:
        if self._asked:
            self._send(byte)
        self._asked = False

    def _send(self, byte: Byte) -> None:
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


class Driver:
    """An OS with a free list. It grants what it has, in runs of at most `longest` pages."""

    def __init__(self, *, longest: int = abi.CALL_PAGES_MAX, most: int | None = None) -> None:
        self.longest = longest
        self.most = most  # pages that it hands over at most; None: all that are free
        self.leaks = 0  # pages that came back with anything in them
        self._free: list[int] = []  # addresses of pages
        self._handed = 0

    def start(self, monitor: FakeMonitor) -> None:
        self.monitor = monitor
        self._free = list(range(BASE, BASE + monitor.hidden, PAGE))

    @property
    def free(self) -> int:
        """Pages that the OS has."""
        return len(self._free)

    def serve(self, notice: Poll) -> None:
        kind, a, b, c = notice
        match kind:
            case Notice.WANT:
                self.want(serial=a, pages=b, minimum=c)
            case Notice.OFFER:
                self.offered(a, b)
            case Notice.UNWANTED:
                self.unwanted(a, b)
            case Notice.GONE:
                self.gone()

    def want(self, serial: int, pages: int, minimum: int) -> None:
        available = len(self._free)
        if self.most is not None:
            available = min(available, self.most - self._handed)
        pages = min(pages, available)
        if pages >= max(minimum, 1):
            self.grant(pages)
        self.monitor.answer(serial, pages if pages >= minimum else 0)

    def grant(self, pages: int) -> list[tuple[int, int]]:
        """Dirty and hand over `pages` pages; return the runs."""
        runs = self.runs(self.allocate(pages))
        for ipa, count in runs:
            window = self.monitor.ram.window(ipa - BASE, count * PAGE)
            window[: len(_LEAVINGS)] = _LEAVINGS
            window[-len(_LEAVINGS) :] = _LEAVINGS
            if self.monitor.grant(ipa, count) is not Status.OK:  # the secure world left meanwhile
                self.freed(ipa, count)
                self._handed += count
        self._handed += pages
        return runs

    def allocate(self, pages: int) -> list[int]:
        self._free.sort()
        chosen, self._free = self._free[:pages], self._free[pages:]
        return chosen

    def runs(self, pages: Iterable[int]) -> list[tuple[int, int]]:
        """Return (address, count) of each run of neighbours, none longer than `longest`."""
        runs: list[tuple[int, int]] = []
        for page in pages:
            if runs and runs[-1][0] + runs[-1][1] * PAGE == page and runs[-1][1] < self.longest:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((page, 1))
        return runs

    def offered(self, ipa: int, pages: int) -> None:
        if self.monitor.take(ipa, pages) is Status.OK:
            window = self.monitor.ram.window(ipa - BASE, pages * PAGE)
            self.leaks += sum(any(window[start : start + PAGE]) for start in range(0, len(window), PAGE))
            self.freed(ipa, pages)

    def unwanted(self, ipa: int, pages: int) -> None:
        states = bytes(self.monitor.states[(ipa - BASE) // PAGE :][:pages])
        if self.monitor.give_back(ipa, pages) is Status.OK:
            for index, state in enumerate(states):
                if state == PageState.GRANTED:
                    self.freed(ipa + index * PAGE, 1)

    def freed(self, ipa: int, pages: int) -> None:
        self._free += range(ipa, ipa + pages * PAGE, PAGE)
        self._handed -= pages

    def gone(self) -> None:
        states = bytes(self.monitor.states)
        for state, call in ((PageState.RECALLING, self.offered), (PageState.GRANTED, self.unwanted)):
            held = (BASE + index * PAGE for index, value in enumerate(states) if value == state)
            for ipa, pages in self.runs(held):
                call(ipa, pages)


class Scattering(Driver):
    """Its memory is in pieces: no two pages that it hands over are neighbours."""

    def __init__(self, *, most: int | None = None) -> None:
        super().__init__(longest=1, most=most)
        self._random = random.Random(4)  # noqa: S311

    def allocate(self, pages: int) -> list[int]:
        self._random.shuffle(self._free)
        chosen, self._free = self._free[:pages], self._free[pages:]
        return chosen


class Boasting(Driver):
    """Answers for twice the pages that it granted."""

    def want(self, serial: int, pages: int, minimum: int) -> None:  # noqa: ARG002
        self.grant(pages // 2)
        self.monitor.answer(serial, pages)


class Regretting(Driver):
    """Takes what it granted away again before it can be committed, `times` times."""

    def __init__(self, *, times: int) -> None:
        super().__init__()
        self.times = times

    def want(self, serial: int, pages: int, minimum: int) -> None:  # noqa: ARG002
        runs = self.grant(pages)
        self.monitor.answer(serial, pages)
        self.times -= 1
        if self.times >= 0:
            for ipa, count in runs:
                self.unwanted(ipa, count)


class Fickle(Driver):
    """Takes back, at random, some of what it just granted, before and after it answers."""

    def __init__(self) -> None:
        super().__init__(longest=3)
        self._random = random.Random(4)  # noqa: S311

    def want(self, serial: int, pages: int, minimum: int) -> None:  # noqa: ARG002
        runs = self.grant(pages)
        early, late = (
            [run for run in runs if self._random.random() < share]
            for share in self._random.choices((0, 0.3), k=2)
        )
        for ipa, count in early:
            self.unwanted(ipa, count)
        self.monitor.answer(serial, pages)
        for ipa, count in late:
            self.unwanted(ipa, count)


class Silent(Driver):
    """Hears everything and does nothing."""

    def serve(self, notice: Poll) -> None:
        del notice


class Stubborn(Driver):
    """Does not take what it is offered back."""

    def offered(self, ipa: int, pages: int) -> None:
        del ipa, pages


class Babbling(Driver):
    """Answers everything three times, late answers and ones to nobody included, and presses absurdly."""

    def want(self, serial: int, pages: int, minimum: int) -> None:
        self.monitor.answer(serial + 1000, 1 << 60)
        super().want(serial, pages, minimum)
        self.monitor.answer(serial, (1 << 64) - 1)
        self.monitor.answer(serial, 0)
        self.monitor.pressure((1 << 64) - 1, (1 << 64) - 1)
        self.monitor.pressure(0, 0)


class Forged(Driver):
    """In league with a broken monitor: it reports grants of pages that are not granted.

    Nobody is promised safety from the monitor; but what can be checked is checked.
    """

    def want(self, serial: int, pages: int, minimum: int) -> None:  # noqa: ARG002
        tell, ram = self.monitor.tell, self.monitor.ram
        for ipa, count in (
            (BASE, pages),  # the OS's still
            (BASE + self.monitor.hidden, 4),  # the monitor's own
            (BASE + ram.size, pages),
            (BASE - PAGE, 1),
            (BASE + 1, 1),
            (BASE + ram.size - PAGE, 1 << 52),
            (0, 0),
        ):
            tell(Event.GRANTED, ipa, count)
        self.monitor.answer(serial, pages)


def eventually(condition: Callable[[], bool], *, within: float = 5.0) -> bool:
    """Wait until `condition` holds, `within` seconds; return whether it does."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


class FakeMachine:
    """RAM, a monitor and an OS, for as long as the context lasts. Attach as often as you like."""

    def __init__(self, ram_bytes: int = 64 * MIB, driver: Driver | None = None) -> None:
        self.fd = os.memfd_create("ram", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, ram_bytes)
        self.doorbell, self._bell = socket.socketpair()
        self.monitor = FakeMonitor(Ram(self.fd), self._bell)
        self.driver = driver or Driver()
        self.driver.start(self.monitor)
        self._running = threading.Lock()  # of the OS
        self._os = threading.Thread(target=self._run, name="fake-os", daemon=True)

    def __enter__(self) -> Self:
        self._os.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.die()
        self.doorbell.close()
        os.close(self.fd)

    def die(self) -> None:
        """End the machine as a crash of the emulator does."""
        with contextlib.suppress(OSError):
            self._bell.shutdown(socket.SHUT_RDWR)
        self._os.join(timeout=10)
        self._bell.close()

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        """Let the OS not run for a while."""
        with self._running:
            yield

    # ---- what a secure world process is started with: normal.guest.SecureCore

    @property
    def secure_fds(self) -> tuple[int, int]:
        return self.fd, self.doorbell.fileno()

    def secure_arguments(self) -> tuple[str, ...]:
        ram, doorbell = self.secure_fds
        return ("--memory", "trustzone", "--ram-fd", str(ram), "--doorbell-fd", str(doorbell))

    def require_alive(self) -> None:
        if not self._os.is_alive():
            raise MachineGoneError("The fake machine ended.", hint="Make another.")

    def reset_secure_core(self) -> None:
        self.mailbox().lay_to_rest(5)

    def memory(self) -> NormalMemory:
        return self

    def sample(self) -> MemorySample:
        free = self.driver.free * PAGE
        return MemorySample(self.monitor.hidden, free, None, free)

    def charged(self, pid: int) -> int:
        del pid
        return self.monitor.hidden - self.driver.free * PAGE

    # ---- looking

    def mailbox(self) -> Mailbox:
        """Return the secure world's end of the mailbox."""
        return Mailbox(Ram(self.fd), self.doorbell)

    def pages(self, *, patience: float = 5.0) -> GuestPages:
        """Return the pages of a secure world that begins. The one before it must have ended."""
        pages = GuestPages(Ram(self.fd), self.mailbox(), patience=patience)
        pages.start()
        return pages

    def check(self) -> None:
        """Assert conservation, and that the OS has the pages that the monitor says, once it is idle."""
        eventually(lambda: self.monitor.counts()[PageState.NORMAL] == self.driver.free)
        counts = self.monitor.counts()
        assert sum(counts.values()) == self.monitor.ram.pages
        assert counts[PageState.MONITOR] * PAGE == abi.HIDDEN_BYTES
        assert counts[PageState.NORMAL] == self.driver.free
        assert self.driver.leaks == 0, f"{self.driver.leaks} pages came back unscrubbed"

    def settled(self, state: PageState, pages: int, *, within: float = 5.0) -> bool:
        """Wait until `pages` pages are in `state`; return whether they are."""
        return eventually(lambda: self.monitor.counts()[state] == pages, within=within)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while heard := self._bell.recv(4096):
                for byte in heard:
                    self.monitor.hear(byte)
                if Byte.RING in heard:
                    self.serve()

    def serve(self) -> None:
        """Do what the driver's interrupt does: poll until there is nothing to do."""
        with self._running:
            while (notice := self.monitor.poll())[0] is not Notice.NONE:
                if notice[0] is Notice.WAIT:
                    time.sleep(50e-6)
                self.driver.serve(notice)
