"""The normal world's side of the trusted application of trusted-app/, for tests.

It runs as a process, under qemu-aarch64, and is driven through a pipe each way. The structs are those of
trusted-app/messages.h.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from flexserve.trusted.store.gguf import GgufHeader, parse_gguf

MODEL = Path(__file__).parents[2] / "models/tiny/flexserve-tiny.gguf"
MOST_PAYLOAD = 16 << 20  # bytes
NUMBERS = 6
_MESSAGE = struct.Struct(f"<II{NUMBERS}Q")
_PROGRESS = struct.Struct("<IIII")
_PIECE = 1 << 20  # bytes of a weight that go over at once
_PLENTY = 64  # chunks: enough for the model of the tests, with its KV and scratch


class Ask(enum.IntEnum):
    """What is asked."""

    HELLO = 1
    GRANT = 2
    GIVE_BACK = 3
    POOL = 4
    OPEN = 5
    CLOSE = 6
    WEIGHT = 7
    WRITE = 8
    READ = 9
    LOAD = 10
    EVICT = 11
    RESIDENT = 12
    TOKENISE = 13
    DETOKENISE = 14
    BEGIN = 15
    STEP = 16
    SAID = 17
    END = 18


class Status(enum.IntEnum):
    """How it went."""

    DONE = 0
    REFUSED = 1
    MISSING = 2
    BAD = 3
    UNSUPPORTED = 4
    FAILED = 5


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

    def __init__(self, command: Sequence[str | Path], *, threads: int = 1, hello: bool = True) -> None:
        """Start it. Without `hello` nothing was said to it yet."""
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
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
        numbers = [*arguments, *[0] * (NUMBERS - len(arguments))]
        try:
            self._stdin.write(_MESSAGE.pack(kind, len(payload), *numbers) + payload)
            self._stdin.flush()
        except BrokenPipeError:
            raise Gone from None
        status, size, *values = _MESSAGE.unpack(self._read(_MESSAGE.size))
        return Reply(Status(status), tuple(values), self._read(size))

    def do(self, kind: Ask, *arguments: int, payload: bytes = b"") -> Reply:
        """Ask for what is granted."""
        reply = self.ask(kind, *arguments, payload=payload)
        assert reply.status is Status.DONE, (kind, reply)
        return reply

    @property
    def _stdin(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    def _read(self, size: int) -> bytes:
        assert self.process.stdout is not None
        data = self.process.stdout.read(size)
        if len(data) < size:
            raise Gone
        return data


Start = Callable[..., Application]  # with how many threads, and whether to say hello


class Opened:
    """A model that is open in an application, without memory."""

    def __init__(self, app: Application, path: Path, *, number: int = 0, sequences: int = 1) -> None:
        self.app, self.number, self._data = app, number, path.read_bytes()
        self.header: GgufHeader = parse_gguf(self._part, len(self._data))
        metadata = self._data[: self.header.data_offset]
        reply = app.do(Ask.OPEN, number, len(self._data), 1024, sequences, payload=metadata)
        self.chunks, self.kv, self.scratch, self.weights, self.context, _ = reply.values

    def _part(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]

    def write_weights(self) -> None:
        """Write all weights from the file."""
        places = {info.name: info for info in self.header.tensors}
        for number in range(self.weights):
            reply = self.do(Ask.WEIGHT, number)
            info = places[reply.payload.decode()]
            assert info.size == reply.values[0]
            for offset in range(0, info.size, _PIECE):
                piece = self._part(info.offset + offset, min(_PIECE, info.size - offset))
                self.do(Ask.WRITE, number, offset, payload=piece)

    def image(self) -> list[bytes]:
        """Return the chunks of the weights as they are in memory."""
        return [self.do(Ask.READ, chunk).payload for chunk in range(self.chunks)]

    def load(self, image: Sequence[bytes]) -> None:
        """Load the chunks that are not there."""
        for chunk, there in enumerate(self.do(Ask.RESIDENT).payload):
            if not there:
                self.do(Ask.LOAD, chunk, payload=image[chunk])

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
    ) -> None:
        """Begin a generation."""
        bits = struct.unpack("<I", struct.pack("<f", temperature))[0]
        self.do(Ask.BEGIN, sequence, most, bits, seed, payload=packed(tokens))

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


def grant_plenty(app: Application) -> None:
    """Grant as much memory as the tests need."""
    app.do(Ask.GRANT, 1 << 20, _PLENTY)
