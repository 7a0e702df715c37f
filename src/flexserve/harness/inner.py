"""The trusted application at S-EL0, driven by hand: for attacks and measurements. No policy, no server.

It is driven through the ring in the machine's RAM, as the guest's user space would.
"""

from __future__ import annotations

import dataclasses
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from flexserve.emulator.machine import Machine
from flexserve.errors import PeerError
from flexserve.platforms.trustzone.ram import BASE, PAGE, Ram
from flexserve.protocol.model_options import KvType
from flexserve.tee_client.link import Link
from flexserve.tee_client.messages import (
    KEPT_PART,
    Ask,
    Finish,
    Progress,
    Reply,
    Status,
    opening,
    packed,
    progress,
    unpacked,
)
from flexserve.tee_client.ring import Ring
from flexserve.trusted.store.aead import TAG_SIZE
from flexserve.trusted.store.container import chunk_length, chunk_offset, read_manifest
from flexserve.trusted.store.keys import Device
from flexserve.trusted.store.manifest import CHUNK, Manifest

WEIGHTS = 2  # as EVICT calls them; KV is 1, scratch is 0
_REST = 0.0005  # seconds
_PATIENCE = 60.0  # seconds for an answer


class NotDone(Exception):  # noqa: N818  # an answer, not an error
    """The application answered a request otherwise than with DONE."""

    def __init__(self, kind: Ask, reply: Reply) -> None:
        super().__init__(f"{kind.name} was answered {reply.status.name}")
        self.reply = reply


def ring_of(machine: Machine) -> tuple[int, int]:
    """Return where in RAM the ring is, and its size, in bytes."""
    state = machine.agent.ask("flexmem")
    return state["ring_page"] * PAGE - BASE, state["ring_pages"] * PAGE


class Application:
    """The application behind the ring in `memory`.

    `require_alive` raises when the machine is gone. An answer that does not come within `patience` seconds
    raises PeerError: the application has ended, or no CPU is lent to it.
    """

    def __init__(
        self, memory: memoryview, require_alive: Callable[[], None], *, patience: float = _PATIENCE
    ) -> None:
        self.memory, self.patience, self._require_alive = memory, patience, require_alive
        self._deadline = 0.0
        self.link = Link(Ring(memory, self._rest))

    @classmethod
    def of(cls, machine: Machine, *, threads: int, patience: float = _PATIENCE) -> Application:
        """Greet the application of a machine that has just started."""
        offset, size = ring_of(machine)
        app = cls(Ram(machine.ram_fd).window(offset, size), machine.require_alive, patience=patience)
        app.do(Ask.HELLO, threads)
        return app

    def ask(self, kind: int, *arguments: int, payload: bytes = b"") -> Reply:
        """Ask, and return what it answers. Raises PeerError and MachineGoneError when nothing comes."""
        self._deadline = time.monotonic() + self.patience
        return self.link.ask(kind, *arguments, payload=payload)

    def do(self, kind: Ask, *arguments: int, payload: bytes = b"") -> Reply:
        """Ask for what is to be granted. Raises NotDone, and as `ask`."""
        reply = self.ask(kind, *arguments, payload=payload)
        if reply.status is not Status.DONE:
            raise NotDone(kind, reply)
        return reply

    def _rest(self) -> None:
        self._require_alive()
        if time.monotonic() > self._deadline:
            raise PeerError(
                "The trusted application does not answer.", hint="Reset the machine.", code="no_answer"
            )
        time.sleep(_REST)


@dataclasses.dataclass(frozen=True, slots=True)
class SealedFile:
    """A .flex file of a store, as the normal world has it: ciphertext, and what its manifest says."""

    path: Path
    manifest: Manifest

    @classmethod
    def read(cls, path: Path, device: Device) -> SealedFile:
        """Read its manifest, whose signature `device` checks."""
        return cls(path, read_manifest(path, device))

    def chunk(self, number: int) -> bytes:
        """Return a chunk of ciphertext, with its tag."""
        with self.path.open("rb") as file:
            file.seek(chunk_offset(number))
            return file.read(chunk_length(self.manifest, number) + TAG_SIZE)

    @property
    def data(self) -> range:
        """Numbers of the chunks that have weights."""
        return range(self.manifest.metadata_bytes // CHUNK, self.manifest.chunks)

    def opening(self, kv: KvType = "f16") -> bytes:
        """Return the payload of OPEN."""
        manifest = self.manifest
        salt, wrapped = bytes.fromhex(manifest.salt), bytes.fromhex(manifest.wrapped_key)
        sealed = opening(manifest.id_bytes, salt, wrapped, kv)
        return sealed + b"".join(self.chunk(number) for number in range(-(-manifest.metadata_bytes // CHUNK)))


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """A sealed image of a model's weights: its salt, and its chunks with their tags."""

    salt: bytes
    chunks: list[bytes]


@dataclasses.dataclass(frozen=True, slots=True)
class SealedKv:
    """A sequence's tokens and KV, sealed."""

    size: int  # bytes of plaintext
    salt: bytes
    parts: list[bytes]


class Asked(Protocol):
    """An application, wherever it runs."""

    def ask(self, kind: int, *arguments: int, payload: bytes = b"") -> Reply:
        """Ask, and return what it answers."""

    def do(self, kind: Ask, *arguments: int, payload: bytes = b"") -> Reply:
        """Ask for what is to be granted; raise when it is not."""


_App = TypeVar("_App", bound=Asked)


class OpenModel(Generic[_App]):
    """The memory of a model that is open in an application: none at first."""

    def __init__(
        self,
        app: _App,
        file: SealedFile,
        *,
        number: int = 0,
        context: int = 1024,
        sequences: int = 1,
        kv: KvType = "f16",
    ) -> None:
        self.app, self.number, self.file = app, number, file
        sizes = (file.manifest.size, context, sequences, file.manifest.metadata_bytes)
        reply = app.do(Ask.OPEN, number, *sizes, payload=file.opening(kv))
        self.chunks, self.kv_chunks, self.scratch_chunks, self.recurs, self.context = reply.values

    def do(self, kind: Ask, *arguments: int, payload: bytes = b"") -> Reply:
        """Ask for something of this model."""
        return self.app.do(kind, self.number, *arguments, payload=payload)

    # ---- weights -----------------------------------------------------------------------------------

    def write(self) -> None:
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

    def evict(self) -> None:
        """Have all of its memory unused. Nothing may be generated meanwhile."""
        for kind in (0, 1, WEIGHTS):
            self.do(Ask.EVICT, kind, 0, self.chunks)

    # ---- KV ----------------------------------------------------------------------------------------

    def keep(self, sequence: int = 0) -> SealedKv:
        """Return what a sequence that says nothing has, sealed."""
        reply = self.do(Ask.KEEP, sequence)
        size = reply.values[0]
        parts = [self.do(Ask.KEPT, part).payload for part in range(-(-size // KEPT_PART))]
        return SealedKv(size, reply.payload, parts)


class Model(OpenModel[Application]):
    """An open model that is asked as a client would. What is refused raises NotDone."""

    def tokenise(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return unpacked(self.do(Ask.TOKENISE, 0, payload=text.encode()).payload)

    def begin(self, tokens: Sequence[int], *, sequence: int = 0, most: int) -> int:
        """Begin a generation, greedily; return the tokens to compute."""
        return self.do(Ask.BEGIN, sequence, most, 0, 0, payload=packed(tokens)).values[0]

    def step(self, sequence: int = 0) -> Progress:
        """Compute a graph for one sequence."""
        return progress(self.do(Ask.STEP, 512, payload=packed([sequence])))[0]

    def finish(self, sequence: int = 0) -> list[int]:
        """Compute until a generation is over, end it, and return what was not taken of it yet."""
        while self.step(sequence).finished is Finish.NO:
            pass
        said = unpacked(self.do(Ask.SAID, sequence).payload)
        self.do(Ask.END, sequence)
        return said

    def answer(self, tokens: Sequence[int], *, most: int, sequence: int = 0) -> list[int]:
        """Return the tokens that it says after a prompt."""
        self.begin(tokens, sequence=sequence, most=most)
        return self.finish(sequence)

    def resume(self, kv: SealedKv, sequence: int = 0, owner: tuple[int, int] = (0, 0)) -> Status:
        """Have a sequence go on from it, which is said to be of `owner`; return how it went."""
        reply = self.app.ask(Ask.RESUME, self.number, sequence, kv.size, *owner, payload=kv.salt)
        for number, part in enumerate(kv.parts):
            if reply.status is Status.DONE:
                reply = self.app.ask(Ask.RESUMED, self.number, number, payload=part)
        return reply.status
