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

from flexserve.trusted.store.aead import TAG_SIZE
from flexserve.trusted.store.container import chunk_length, chunk_offset, read_manifest
from flexserve.trusted.store.keys import DeviceKey
from flexserve.trusted.store.manifest import CHUNK, Manifest

MODEL = Path(__file__).parents[2] / "models/tiny/flexserve-tiny.gguf"
QUESTION = "<|im_start|>user\nWhat is Flex-Mem?<|im_end|>\n<|im_start|>assistant\n"
MOST_PAYLOAD = 16 << 20  # bytes
NUMBERS = 5
_MESSAGE = struct.Struct(f"<IIQ{NUMBERS}Q")
_PROGRESS = struct.Struct("<IIII")
ROOT = bytes(range(32))  # the device's root secret
_KEPT_PART = 1 << 16  # bytes
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


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """Where a generation is after a step."""

    sequence: int
    pending: int
    said: int
    finished: Finish


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


@dataclasses.dataclass(frozen=True, slots=True)
class SealedFile:
    """A .flex file of the store."""

    manifest: Manifest
    content: bytes

    @classmethod
    def read(cls, path: Path, device: DeviceKey) -> SealedFile:
        """Read it."""
        return cls(read_manifest(path, device), path.read_bytes())

    def chunk(self, number: int) -> bytes:
        """Return a chunk of ciphertext, with its tag."""
        start = chunk_offset(number)
        return self.content[start : start + chunk_length(self.manifest, number) + TAG_SIZE]

    @property
    def data(self) -> range:
        """Numbers of the chunks that have weights."""
        return range(self.manifest.metadata_bytes // CHUNK, self.manifest.chunks)

    def opening(self) -> bytes:
        """Return the payload that opens it."""
        manifest = self.manifest
        sealed = manifest.id_bytes + bytes.fromhex(manifest.salt) + bytes.fromhex(manifest.wrapped_key)
        return sealed + b"".join(self.chunk(number) for number in range(-(-manifest.metadata_bytes // CHUNK)))


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """A sealed image of a model's weights."""

    salt: bytes
    chunks: list[bytes]


@dataclasses.dataclass(frozen=True, slots=True)
class SealedKv:
    """A sequence's tokens and KV."""

    size: int  # bytes of plaintext
    salt: bytes
    parts: list[bytes]


class Opened:
    """A model that is open in an application, without memory."""

    def __init__(self, app: Application, file: SealedFile, *, number: int = 0, sequences: int = 1) -> None:
        self.app, self.number, self.file = app, number, file
        sizes = (file.manifest.size, 1024, sequences, file.manifest.metadata_bytes)
        reply = app.do(Ask.OPEN, number, *sizes, payload=file.opening())
        self.chunks, self.kv, self.scratch, self.weights, self.context = reply.values

    def write_weights(self) -> None:
        """Write all weights from the file."""
        for number in self.file.data:
            self.do(Ask.WRITE, number, payload=self.file.chunk(number))

    def seal(self) -> Image:
        """Return the weights as they are in memory, sealed."""
        replies = [self.do(Ask.SEAL, chunk) for chunk in range(self.chunks)]
        return Image(struct.pack("<4Q", *replies[0].values[:4]), [reply.payload for reply in replies])

    def load(self, image: Image) -> None:
        """Load the chunks that are not there."""
        self.do(Ask.IMAGE, payload=image.salt)
        for chunk, there in enumerate(self.do(Ask.RESIDENT).payload):
            if not there:
                self.do(Ask.LOAD, chunk, payload=image.chunks[chunk])

    def do(self, kind: Ask, *arguments: int, payload: bytes = b"") -> Reply:
        """Ask for what is granted, of this model."""
        return self.app.do(kind, self.number, *arguments, payload=payload)

    # ---- text --------------------------------------------------------------------------------------

    def tokenise(self, text: str) -> list[int]:
        """Return the tokens of a text, with control tokens by name."""
        return unpacked(self.do(Ask.TOKENISE, 1, payload=text.encode()).payload)

    def detokenise(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return self.do(Ask.DETOKENISE, payload=packed(tokens)).payload.decode()

    def begin(
        self,
        tokens: Sequence[int],
        *,
        sequence: int = 0,
        most: int = 100,
        temperature: float = 0,
        seed: int = 0,
    ) -> int:
        """Begin a generation; return the tokens to compute."""
        bits = struct.unpack("<I", struct.pack("<f", temperature))[0]
        return self.do(Ask.BEGIN, sequence, most, bits, seed, payload=packed(tokens)).values[0]

    def step(self, *sequences: int, limit: int = 512) -> list[Progress]:
        """Compute a graph."""
        return progress(self.do(Ask.STEP, limit, payload=packed(sequences)))

    def answer(self, tokens: Sequence[int], *, most: int = 100) -> list[int]:
        """Return the tokens that it says after a prompt, to its end."""
        self.begin(tokens, most=most)
        while self.step(0)[0].finished is Finish.NO:
            pass
        said = unpacked(self.do(Ask.SAID, 0).payload)
        self.do(Ask.END, 0)
        return said

    # ---- KV ----------------------------------------------------------------------------------------

    def keep(self, sequence: int) -> SealedKv:
        """Return what a sequence has, sealed."""
        reply = self.do(Ask.KEEP, sequence)
        size = reply.values[0]
        parts = [self.do(Ask.KEPT, part).payload for part in range(-(-size // _KEPT_PART))]
        return SealedKv(size, reply.payload, parts)

    def resume(self, sequence: int, kv: SealedKv) -> Status:
        """Have a sequence go on from it; return how it went."""
        self.do(Ask.RESUME, sequence, kv.size, payload=kv.salt)
        for number, part in enumerate(kv.parts):
            reply = self.app.ask(Ask.RESUMED, self.number, number, payload=part)
            if reply.status is not Status.DONE:
                return reply.status
        return Status.DONE


def progress(reply: Reply) -> list[Progress]:
    """Return what a step answers."""
    return [
        Progress(sequence, pending, said, Finish(finished))
        for sequence, pending, said, finished in _PROGRESS.iter_unpack(reply.payload)
    ]


def packed(numbers: Sequence[int]) -> bytes:
    """Return numbers as a payload."""
    return struct.pack(f"<{len(numbers)}I", *numbers)


def unpacked(payload: bytes) -> list[int]:
    """Return the numbers of a payload."""
    return list(struct.unpack(f"<{len(payload) // 4}I", payload))


def provide(app: Application, *, chunks: int = _PLENTY) -> None:
    """Give it the secret, and as much memory as the tests need."""
    app.do(Ask.SECRET, payload=ROOT)
    app.do(Ask.GRANT, chunks)
