"""Real machines for tests, and a secure world in a page of code: the mailbox's bytes and nothing else.

It is written from abi/flex.toml alone and shares no line with the product's secure world, so that the
two judge each other.
"""

from __future__ import annotations

import contextlib
import mmap
import secrets
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from flexserve.emulator.build import NoSourcesError, Options, build
from flexserve.emulator.packages import NoPackageError
from flexserve.emulator.tools import MissingToolError, require
from flexserve.folders import cache_folder
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.abi import Byte, Command, Event, PageState, Status
from flexserve.units import MIB

machine = pytest.importorskip("flexserve.emulator.machine")

BASE, PAGE = 0x4000_0000, 4096
RAM = 256 * MIB
Run = tuple[int, int]  # address, pages
_SLOT = struct.Struct("<4Q")
_RING = abi.SLOTS * _SLOT.size


@contextlib.contextmanager
def booted(ram: int = RAM, cpus: int = 2, **kinds: Any) -> Iterator[Any]:
    """A machine; `devices` and the fields of `Options` may be given. Skips where none can be built.

    `alter` returns the images to boot from, of those that were built. An `application` runs at S-EL0.
    """
    devices, alter = kinds.pop("devices", ()), kinds.pop("alter", lambda images: images)
    application, secret = kinds.pop("application", None), kinds.pop("secret", b"")
    try:
        require("qemu-system-aarch64")
        images = build(
            cache_folder() / "trustzone",
            ram_bytes=ram,
            cpus=cpus,
            progress=lambda _: None,
            options=Options(**kinds),
            application=application,
        )
    except (MissingToolError, NoPackageError, NoSourcesError) as error:
        pytest.skip(str(error))
    npu = kinds.get("npu", False)
    with machine.Machine(
        alter(images), ram_bytes=ram, cpus=cpus, npu=npu, devices=devices, secret=secret
    ) as it:
        yield it


def ask(it: Any, question: str, seconds: float = 60) -> dict[str, Any]:
    """Ask the agent of a machine."""
    answer: dict[str, Any] = it.agent.ask(*question.split(), seconds=seconds)
    return answer


class SecureWorld:
    """The secure end of the mailbox of a machine. Not thread-safe."""

    def __init__(self, it: Any) -> None:
        self.memory = mmap.mmap(it.ram_fd, it.ram_bytes)
        self._bell: socket.socket = it.doorbell
        self._at = self._find()
        (states,) = struct.unpack_from("<Q", self.memory, self._at + abi.OFFSET_STATES_OFFSET)
        self.states = np.frombuffer(self.memory, np.uint8, it.ram_bytes // PAGE, states)
        self._words = np.frombuffer(self.memory, np.uint32, abi.HEADER_BYTES // 4, self._at)
        self._serial = 0
        self.epoch = 0
        self.granted: list[Run] = []
        self.taken = 0  # pages
        self.pressure: list[tuple[int, int]] = []  # pages, milliseconds
        self.answers: dict[int, int] = {}
        self.done: dict[int, int] = {}
        self.others: Counter[int] = Counter()
        self.bytes = b""  # what came over the secure UART

    def _find(self) -> int:
        magic, end = struct.pack("<Q", abi.MAGIC), len(self.memory)
        found = [
            at
            for at in range(end - abi.HIDDEN_BYTES, end, PAGE)
            if self.memory[at : at + len(magic)] == magic
        ]
        assert len(found) == 1
        return found[0]

    # ---- saying ------------------------------------------------------------------------------

    def put(self, command: Command, *arguments: int) -> None:
        head = int(self._words[abi.OFFSET_COMMAND_HEAD // 4])
        slot = self._at + abi.HEADER_BYTES + head % abi.SLOTS * _SLOT.size
        _SLOT.pack_into(self.memory, slot, command, *arguments, *[0] * (3 - len(arguments)))
        self._words[abi.OFFSET_COMMAND_HEAD // 4] = (head + 1) & 0xFFFF_FFFF

    def ring(self) -> None:
        self._say(Byte.RING)

    def query(self) -> None:
        """Ask whether protection is on: the answer, and the next change, come over the secure UART."""
        self._say(Byte.QUERY)

    def _say(self, byte: Byte) -> None:
        # The machine stands still while nobody takes what its UART says: so this must not wait for it.
        with contextlib.suppress(BlockingIOError):
            self._bell.send(bytes((byte,)), socket.MSG_DONTWAIT)

    def attach(self) -> None:
        """Attach, once protection is on: until then the mailbox is not the monitor's."""
        before = self.others[Event.ATTACHED]
        while self.others[Event.ATTACHED] == before:
            self.bytes = b""
            self.ring()
            self.query()
            self.wait(lambda: bytes((Byte.ON,)) in self.bytes)
            self.epoch, self.bytes = secrets.randbits(63), b""
            self.query()  # so that the next change is told
            self.put(Command.ATTACH, self.epoch)
            self.ring()
            self.wait(self._attached_or_off(before))  # it goes off when it was idle until a moment ago

    def _attached_or_off(self, before: int) -> Callable[[], bool]:
        return lambda: self.others[Event.ATTACHED] > before or bytes((Byte.OFF,)) in self.bytes

    def die(self) -> None:
        self.put(Command.GONE, self.epoch)
        self.ring()

    def want(self, pages: int, minimum: int = 1, seconds: float = 30) -> list[Run]:
        """Ask for pages, wait for the answer, and return what was granted meanwhile."""
        self._serial += 1
        serial, self.granted = self._serial, []
        self.put(Command.WANT, serial, pages, minimum)
        self.ring()
        self.wait(lambda: serial in self.answers, seconds)
        assert self.answers[serial] == sum(count for _, count in self.granted)
        return self.granted

    def each(self, command: Command, runs: list[Run], *, expect: Status = Status.OK) -> None:
        """Have a command carried out for every run."""
        serials = range(self._serial + 1, self._serial + 1 + len(runs))
        self._serial += len(runs)
        for index, (serial, (address, pages)) in enumerate(zip(serials, runs, strict=True)):
            self.put(command, address, pages, serial)
            if index % 1024 == 1023:
                self.wait(lambda last=serial: last in self.done)  # type: ignore[misc]
        self.ring()
        self.wait(lambda: all(serial in self.done for serial in serials))
        assert {self.done.pop(serial) for serial in serials} <= {expect}

    def recall(self, runs: list[Run]) -> None:
        """Recall, and wait until the OS has everything."""
        until = self.taken + sum(pages for _, pages in runs)
        self.each(Command.RECALL, runs)
        self.wait(lambda: self.taken >= until)

    # ---- hearing -----------------------------------------------------------------------------

    def wait(
        self, until: Callable[[], bool], seconds: float = 30, meanwhile: Callable[[], None] | None = None
    ) -> None:
        deadline = time.monotonic() + seconds
        self.hear()
        while not until():
            assert time.monotonic() < deadline, f"waited in vain; {self.counts()} {self.others}"
            self._sleep(0.005)
            self.hear()
            if len(self._pending()):
                self.ring()
            if meanwhile:
                meanwhile()

    def _sleep(self, seconds: float) -> None:
        """Wait for the bell, which is rung only meanwhile: nobody else takes what the UART says."""
        self._words[abi.OFFSET_SLEEPING // 4] = 1
        select.select([self._bell], [], [], seconds)
        self._words[abi.OFFSET_SLEEPING // 4] = 0

    def _pending(self) -> range:
        tail = int(self._words[abi.OFFSET_COMMAND_TAIL // 4])
        return range(tail, int(self._words[abi.OFFSET_COMMAND_HEAD // 4]))

    def hear(self) -> None:
        """Take all events there are."""
        tail = int(self._words[abi.OFFSET_EVENT_TAIL // 4])
        while tail != int(self._words[abi.OFFSET_EVENT_HEAD // 4]):
            slot = self._at + abi.HEADER_BYTES + _RING + tail % abi.SLOTS * _SLOT.size
            self._note(*_SLOT.unpack_from(self.memory, slot))
            tail = (tail + 1) & 0xFFFF_FFFF
            self._words[abi.OFFSET_EVENT_TAIL // 4] = tail
        with contextlib.suppress(BlockingIOError):
            self.bytes += self._bell.recv(4096, socket.MSG_DONTWAIT).replace(bytes((Byte.EVENT,)), b"")

    def _note(self, kind: int, a: int, b: int, _: int) -> None:
        match kind:
            case Event.GRANTED:
                self.granted.append((a, b))
            case Event.ANSWER:
                self.answers[a] = b
            case Event.DONE:
                self.done[a] = b - (1 << 64) if b >> 63 else b
            case Event.TAKEN:
                self.taken += b
            case Event.PRESSURE:
                self.pressure.append((a, b))
            case _:
                self.others[kind] += 1

    # ---- looking -----------------------------------------------------------------------------

    def counts(self) -> dict[PageState, int]:
        """Pages in each state, as the monitor has them."""
        found = np.bincount(self.states, minlength=len(PageState))
        return {state: int(found[state]) for state in PageState}

    def held(self) -> int:
        """Pages that the OS lacks."""
        counts = self.counts()
        return len(self.states) - counts[PageState.NORMAL] - counts[PageState.MONITOR]

    def page(self, address: int) -> memoryview:
        return memoryview(self.memory)[address - BASE : address - BASE + PAGE]

    def fill(self, runs: list[Run], pattern: bytes) -> None:
        for address, pages in runs:
            size = pages * PAGE
            self.memory[address - BASE : address - BASE + size] = pattern * (size // len(pattern))
