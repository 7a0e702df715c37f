"""The normal world's side of the trusted application of trusted-app/, for tests.

It runs as a process, under qemu-aarch64, and is driven through a pipe each way, or through a ring in a file.
The structs are those of trusted-app/messages.h and ring.h.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import mmap
import os
import struct
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

MODEL = Path(__file__).parents[2] / "models/tiny/flexserve-tiny.gguf"
QUESTION = "<|im_start|>user\nWhat is Flex-Mem?<|im_end|>\n<|im_start|>assistant\n"
MOST_PAYLOAD = 16 << 20  # bytes
NUMBERS = 5
_MESSAGE = struct.Struct(f"<IIQ{NUMBERS}Q")
ROOT = bytes(range(32))  # the device's root secret
_PLENTY = 64  # chunks: enough for the model of the tests, with its KV and scratch


class Ask(enum.IntEnum):
    """What is asked."""

    HELLO = 1
    GRANT = 2
    GIVE_BACK = 3
    POOL = 4
    SECRET = 5
    OPEN = 6
    CLOSE = 7
    WRITE = 8
    SEAL = 9
    IMAGE = 10
    LOAD = 11
    EVICT = 12
    RESIDENT = 13
    TOKENISE = 14
    DETOKENISE = 15
    BEGIN = 16
    STEP = 17
    SAID = 18
    END = 19
    KEEP = 20
    KEPT = 21
    RESUME = 22
    RESUMED = 23
    LOAD_PAGES = 24
    HEAP = 25


class Status(enum.IntEnum):
    """How it went."""

    DONE = 0
    REFUSED = 1
    MISSING = 2
    BAD = 3
    UNSUPPORTED = 4
    FAILED = 5
    DAMAGED = 6
    BUSY = 7


class Kind(enum.IntEnum):
    """What memory is used for."""

    SCRATCH = 0
    KV = 1
    WEIGHTS = 2


class Finish(enum.IntEnum):
    """Why a generation ended."""

    NO = 0
    STOP = 1
    LENGTH = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """An answer."""

    status: Status
    values: tuple[int, ...]
    payload: bytes


class Gone(Exception):
    """The application has ended."""


class Application:
    """A running trusted application."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        threads: int = 1,
        hello: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it. Without `hello` nothing was said to it yet."""
        self._tag = 0
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **(environment or {})}
        )
        if hello:
            self.version, self.chunk, self.batch, *_ = self.do(Ask.HELLO, threads).values

    def end(self) -> None:
        """End it. Always safe."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self.process.kill()
        self.process.wait()

    def ask(self, kind: int, *arguments: int, payload: bytes = b"") -> Reply:
        """Ask, and return what it answers. Raises Gone when it ends instead."""
        tag = self.send(kind, *arguments, payload=payload)
        answered, reply = self.receive()
        assert answered == tag
        return reply

    def receive(self) -> tuple[int, Reply]:
        """Return the next answer, and the tag of what it answers. Raises Gone."""
        status, size, tag, *values = _MESSAGE.unpack(self._read(_MESSAGE.size))
        return tag, Reply(Status(status), tuple(values), self._read(size))

    def send(self, kind: int, *arguments: int, payload: bytes = b"") -> int:
        """Ask, and do not wait for an answer; return the tag."""
        numbers = [*arguments, *[0] * (NUMBERS - len(arguments))]
        self._tag += 1
        self._write(_MESSAGE.pack(kind, len(payload), self._tag, *numbers) + payload)
        return self._tag

    def do(self, kind: Ask, *arguments: int, payload: bytes = b"") -> Reply:
        """Ask for what is granted."""
        reply = self.ask(kind, *arguments, payload=payload)
        assert reply.status is Status.DONE, (kind, reply)
        return reply

    def _write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(data)
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Gone from None

    def _read(self, size: int) -> bytes:
        assert self.process.stdout is not None
        data = self.process.stdout.read(size)
        if len(data) < size:
            raise Gone
        return data


Start = Callable[..., Application]  # with how many threads, and whether to say hello


class RingApplication(Application):
    """One that is driven through a ring, in a file of `size` bytes at `path`; `ram`: a file of its memory."""

    REQUESTS_WRITTEN, REQUESTS_READ, ANSWERS_WRITTEN, ANSWERS_READ = range(4)

    def __init__(
        self, command: Sequence[str | Path], path: Path, size: int, *, ram: Path | None = None
    ) -> None:
        path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            memory = memoryview(mmap.mmap(file.fileno(), size))
        # The variables are for trusted-app/tests/fake_secure_os.cpp.
        environment = {"FLEX_RING": str(path)} | ({"FLEX_RAM": str(ram)} if ram is not None else {})
        self.start_in(memory, [*command, path], environment=environment)

    def start_in(
        self,
        memory: memoryview,
        command: Sequence[str | Path],
        *,
        threads: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it with its ring in this memory."""
        self._memory = memory
        self.area = 1 << ((len(memory) - mmap.PAGESIZE) // 2).bit_length() - 1
        super().__init__(command, threads=threads, environment=environment)

    def count(self, number: int) -> int:
        """Return a count of the ring."""
        return int.from_bytes(self._memory[64 * number : 64 * number + 4], "little")

    def set_count(self, number: int, value: int) -> None:
        """Set a count of the ring."""
        self._memory[64 * number : 64 * number + 4] = (value % (1 << 32)).to_bytes(4, "little")

    def _write(self, data: bytes) -> None:
        while data:
            written = self.count(self.REQUESTS_WRITTEN)
            room = self.area - (written - self.count(self.REQUESTS_READ)) % (1 << 32)
            at = written % self.area
            part = data[: min(room, self.area - at)]
            self._memory[mmap.PAGESIZE + at : mmap.PAGESIZE + at + len(part)] = part
            self.set_count(self.REQUESTS_WRITTEN, written + len(part))
            data = data[len(part) :]
            self._rest(bool(part))

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            read = self.count(self.ANSWERS_READ)
            there = (self.count(self.ANSWERS_WRITTEN) - read) % (1 << 32)
            at = read % self.area
            first = mmap.PAGESIZE + self.area + at
            part = self._memory[first : first + min(there, self.area - at, size - len(data))].tobytes()
            self.set_count(self.ANSWERS_READ, read + len(part))
            data += part
            self._rest(bool(part))
        return data

    def _rest(self, moved: bool) -> None:
        if not moved:
            if self.process.poll() is not None:
                raise Gone
            time.sleep(0.0005)


def provide(app: Application, *, chunks: int = _PLENTY) -> None:
    """Give it the secret, and as much memory as the tests need."""
    app.do(Ask.SECRET, payload=ROOT)
    app.do(Ask.GRANT, chunks)
