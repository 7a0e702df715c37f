"""The monitor under a normal world of one page (bare.S), on QEMU: it starts in a moment, does exactly what a
test wants, and nothing else. What a real kernel makes of the monitor is tested elsewhere.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import flexserve
from flexserve.emulator import packages
from flexserve.emulator.secure_os import firmware_with
from flexserve.emulator.tools import MissingToolError, require
from flexserve.folders import cache_folder
from flexserve.platforms.linux import parent_death
from flexserve.platforms.trustzone import abi, layout
from flexserve.platforms.trustzone.abi import Call, Command, Event, Notice, NpuState, RunAnswer, Status
from flexserve.units import MIB

BASE, PAGE = 0x4000_0000, 4096
RAM = 256 * MIB
HIDDEN = BASE + layout.hidden_offset(RAM)
WINDOW, CONTROL = BASE + layout.npu_window_offset(RAM), BASE + layout.npu_control_offset(RAM)
CODE = BASE + 8 * MIB  # what a test has to be run in the sandbox
PATIENCE = 60.0  # seconds
CALL, LOAD, STORE, RUN = 0, 1, 2, 4

_SOURCES = Path(flexserve.__file__).parents[2]
_CROSS = "aarch64-linux-gnu-"
_WISHES, _KERNEL = 0x10_0000, 0x4020_0000
_ROUTINES, _ROUTINE = 9 * MIB, 256  # bytes
_SLOT = struct.Struct("<4Q")


def assembled(source: str, folder: Path) -> bytes:
    """Return the machine code of some lines of assembly, which must not depend on where it lies."""
    target = folder / "code"
    command = (f"{_CROSS}gcc", "-x", "assembler-with-cpp", "-c", "-", "-o", f"{target}.o")
    subprocess.run(command, input=source.encode(), check=True)
    subprocess.run((f"{_CROSS}objcopy", "-O", "binary", f"{target}.o", target), check=True)
    return target.read_bytes()


def _firmware() -> bytes:
    """Return what the monitor's sources make; one process that runs tests builds it at a time."""
    monitor, lock = _SOURCES / "monitor", cache_folder() / "trustzone" / "firmware.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with packages.locked(lock, lambda _what: None):
        subprocess.run(("make", "-s", "-C", monitor, "fw"), check=True, capture_output=True)
        return (monitor / "build/fw.bin").read_bytes()


class Device:
    """The least of an NPU: it answers on its control page, and says which device it is."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._window = memoryview(memory).cast("I")[(WINDOW - BASE) // 4 :]
        self._control = memoryview(memory).cast("I")[(CONTROL - BASE) // 4 :]
        self.resets, self.answers = True, True  # whether it does what it is asked for
        self.flushes = 0  # so many were done
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def word(self, offset: int) -> int:
        return self._control[offset // 4]

    def say(self, offset: int, value: int) -> None:
        self._control[offset // 4] = value

    @property
    def root(self) -> int:
        return self.word(abi.NPU_OFFSET_ROOT) | self.word(abi.NPU_OFFSET_ROOT + 4) << 32

    def end(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.001):
            flush, reset = self.word(abi.NPU_OFFSET_FLUSH), self.word(abi.NPU_OFFSET_RESET)
            if flush != self.word(abi.NPU_OFFSET_FLUSH_DONE) and self.answers:
                self.flushes += 1
                self.say(abi.NPU_OFFSET_FLUSH_DONE, flush)
            if reset != self.word(abi.NPU_OFFSET_RESET_DONE) and self.resets:
                self._window[0], self._window[1] = abi.NPU_VERSION, abi.NPU_VERSION_NUM
                self.say(abi.NPU_OFFSET_BUSY, 0)
                self.say(abi.NPU_OFFSET_RESET_DONE, reset)


class Bare:
    """The machine, and the secure world's end of its mailbox."""

    def __init__(
        self,
        memory: mmap.mmap,
        device: Device,
        bell: socket.socket,
        console: socket.socket,
        process: subprocess.Popen[bytes],
    ) -> None:
        self.memory, self.device, self.bell, self._process = memory, device, bell, process
        self._console = console  # the emulator's
        self._words = memoryview(memory).cast("I")  # written and read whole, unlike by `struct`
        self._mailbox = layout.mailbox_offset(RAM)
        self._turn, self._routines = 0, 0

    @property
    def started(self) -> bool:
        """Whether the monitor has been made."""
        return self._words[self._mailbox // 4] | self._words[self._mailbox // 4 + 1] << 32 == abi.MAGIC

    # ---- the normal world

    def wish(self, kind: int, *given: int, tick: int = 0) -> tuple[int, ...]:
        """Have something done; return x0 … x7."""
        self._turn += 1
        struct.pack_into("<2I8Q", self.memory, _WISHES + 8, kind, tick, *given, *[0] * (8 - len(given)))
        self._words[_WISHES // 4] = self._turn
        self.wait(lambda: self._words[_WISHES // 4 + 1] == self._turn)
        return struct.unpack_from("<8Q", self.memory, _WISHES + 80)

    def run(self, code: bytes, given: int = 0) -> int:
        """Run code of the normal world, with `given` in x0; return what it leaves there."""
        # Each where none was before: the emulator does not see that other code is there.
        at = _ROUTINES + self._routines * _ROUTINE
        self._routines += 1
        self.memory[at : at + len(code)] = code
        return self.wish(RUN, given, BASE + at)[0]

    def last_wish(self, kind: int, *given: int, resets: bool) -> None:
        """Have the machine ended, or started again."""
        self._forget_start()
        struct.pack_into("<2I8Q", self.memory, _WISHES + 8, kind, 0, *given, *[0] * (8 - len(given)))
        self._words[_WISHES // 4] = self._turn + 1
        if resets:
            self.wait(lambda: self.started)
        else:
            self._process.wait(PATIENCE)

    def reset(self) -> None:
        """Reset the machine, which hears nothing of it before; wait until it has started again."""
        self._forget_start()
        self._console.send(b"system_reset\n")
        self.wait(lambda: self.started)

    def _forget_start(self) -> None:
        self._words[self._mailbox // 4] = 0

    def call(self, call: Call, *arguments: int, tick: int = 0) -> tuple[Status, int]:
        """Return the status, and what x1 said."""
        status, (x1, _) = self._call(abi.SMC_BASE + call, *arguments, tick=tick)
        return status, x1

    def run_call(self, *arguments: int, tick: int = 0) -> tuple[Status, tuple[int, int]]:
        """Make RUN; return the status, and what x1 and x2 said."""
        return self._call(abi.SMC_BASE + abi.CALL_RUN, *arguments, tick=tick)

    def lend(self, *, tick: int = 0) -> tuple[RunAnswer, int]:
        """Lend the CPU; return why it is back, and what else was said."""
        status, (answer, argument) = self.run_call(tick=tick)
        assert status == Status.OK
        return RunAnswer(answer), argument

    def _call(self, function: int, *arguments: int, tick: int) -> tuple[Status, tuple[int, int]]:
        x = self.wish(CALL, function, *arguments, tick=tick)
        assert x[7] == 0, "a call altered a register of the normal world"
        return Status(x[0] - (1 << 64) if x[0] >> 63 else x[0]), (x[1], x[2])

    def reaches(self, address: int) -> bool:
        """Whether the normal world reads it as it is."""
        x = self.wish(LOAD, 0, address)
        assert x[0] or x[1] == int.from_bytes(self.memory[address - BASE : address - BASE + 8], "little")
        return x[0] == 0

    def poll(self, tick: int = 0) -> int:
        return self.call(Call.POLL, tick=tick)[1]

    def npu(self) -> NpuState:
        state = NpuState(self.call(Call.NPU_STATE)[1])
        assert self._words[self._field(abi.OFFSET_NPU_STATE)] == state
        return state

    # ---- the secure world

    def _field(self, offset: int) -> int:
        """Which word of RAM a field of the mailbox is."""
        return (self._mailbox + offset) // 4

    def command(self, kind: Command, *arguments: int) -> None:
        head = self._words[self._field(abi.OFFSET_COMMAND_HEAD)]
        slot = self._mailbox + abi.HEADER_BYTES + head % abi.SLOTS * _SLOT.size
        _SLOT.pack_into(self.memory, slot, kind, *arguments, *[0] * (3 - len(arguments)))
        self._words[self._field(abi.OFFSET_COMMAND_HEAD)] = head + 1

    def events(self) -> list[tuple[Event, int, int]]:
        """Take what there is."""
        found = []
        tail = self._words[self._field(abi.OFFSET_EVENT_TAIL)]
        while tail != self._words[self._field(abi.OFFSET_EVENT_HEAD)]:
            slot = self._mailbox + abi.HEADER_BYTES + abi.SLOTS * _SLOT.size + tail % abi.SLOTS * _SLOT.size
            kind, a, b, _ = _SLOT.unpack_from(self.memory, slot)
            found.append((Event(kind), a, b - (1 << 64) if b >> 63 else b))
            tail += 1
            self._words[self._field(abi.OFFSET_EVENT_TAIL)] = tail
        return found

    def settle(self) -> None:
        """POLL until there is nothing to do."""
        while self.poll() != Notice.NONE:
            pass

    @property
    def digest(self) -> bytes:
        """Of what drives the NPU."""
        at = self._mailbox + abi.OFFSET_NPU_DRIVER
        return self.memory[at : at + 32]

    # ----

    def wait(self, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not until():
            assert self._process.poll() is None, f"the machine ended: {self.last_words()}"
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.0002)

    def last_words(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.read().decode(errors="replace")


@contextlib.contextmanager
def bare(
    folder: Path, *, npus: int = 1, resets: bool = False, secure_os: bytes = b"", application: bytes = b""
) -> Iterator[Bare]:
    """A machine that runs until the context ends; what it needs it puts into `folder`."""
    try:
        require("qemu-system-aarch64", f"{_CROSS}gcc")
    except MissingToolError as error:
        pytest.skip(str(error))
    folder = Path(tempfile.mkdtemp(dir=folder))
    image = bytearray(_firmware())
    code = assembled((Path(__file__).parent / "bare.S").read_text(), folder)
    board = (abi.BOARD_MAGIC, BASE, RAM, 1, npus, len(code), 0, 0)
    struct.pack_into("<8Q", image, abi.BOARD_OFFSET, *board)
    firmware, kernel, ram = folder / "fw.bin", folder / "bare.bin", os.memfd_create("ram")
    firmware.write_bytes(firmware_with(bytes(image), secure_os, application) if secure_os else image)
    kernel.write_bytes(code)
    os.truncate(ram, RAM)
    ours, theirs = socket.socketpair()
    console, consoles = socket.socketpair()
    words = (
        f"-nodefaults -no-user-config {'' if resets else '-no-reboot'} -cpu cortex-a76 "
        f"-smp cpus=1,maxcpus=2 -m {RAM // MIB}M "
        "-machine virt,secure=on,virtualization=on,gic-version=3,highmem=off,its=off,iommu=smmuv3,"
        "memory-backend=ram "
        f"-object memory-backend-file,id=ram,share=on,size={RAM},mem-path=/proc/self/fd/{ram} -display none "
        f"-chardev socket,id=monitor,fd={consoles.fileno()} -monitor chardev:monitor "
        f"-bios {firmware} -device loader,file={kernel},addr={_KERNEL:#x},force-raw=on "
        f"-chardev socket,id=secure,fd={theirs.fileno()} -chardev file,id=console,path=/dev/stdout "
        "-serial chardev:console -serial chardev:secure"
    ).split()
    with ours, theirs, console, consoles, open(ram, "r+b"), contextlib.ExitStack() as stack:
        memory = mmap.mmap(ram, RAM)
        device = Device(memory)
        stack.callback(device.end)
        process = subprocess.Popen(
            parent_death.command("qemu-system-aarch64", *words),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(ram, theirs.fileno(), consoles.fileno()),
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        it = Bare(memory, device, ours, console, process)
        it.wait(lambda: it.started)  # until then RAM is overwritten, whoever wrote to it
        yield it
