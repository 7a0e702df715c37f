"""Models of the trusted application of trusted-app/, for tests: sealed, and open in one that is driven."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence
from pathlib import Path

from inner_application import Application

from flexserve.tee_client.messages import (
    KEPT_PART,
    Ask,
    Finish,
    Progress,
    Reply,
    Status,
    packed,
    progress,
    unpacked,
)
from flexserve.tee_client.sampling import Said, said
from flexserve.trusted.store.aead import TAG_SIZE
from flexserve.trusted.store.container import chunk_length, chunk_offset, read_manifest
from flexserve.trusted.store.keys import DeviceKey
from flexserve.trusted.store.manifest import CHUNK, Manifest


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


NOBODY = bytes(16)  # the owner of KV unless a test says otherwise


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
        sampling: bytes = b"",
        owner: bytes = NOBODY,
    ) -> int:
        """Begin a generation; return the tokens to compute. Without `sampling` it says the likeliest ones."""
        arguments = (sequence, most, *struct.unpack("<2Q", owner))
        pending = self.do(Ask.BEGIN, *arguments, payload=packed(tokens)).values[0]
        if sampling:
            self.do(Ask.SAMPLING, sequence, payload=sampling)
        return pending

    def step(self, *sequences: int, limit: int = 512) -> list[Progress]:
        """Compute a graph."""
        return progress(self.do(Ask.STEP, limit, payload=packed(sequences)))

    def answer(self, tokens: Sequence[int], *, most: int = 100, sampling: bytes = b"") -> list[int]:
        """Return the tokens that it says after a prompt, to its end."""
        self.begin(tokens, most=most, sampling=sampling)
        return self.rest().tokens

    def rest(self, sequence: int = 0, *, logprobs: int | None = None) -> Said:
        """Return what a generation says to its end."""
        while self.step(sequence)[0].finished is Finish.NO:
            pass
        answered = said(self.do(Ask.SAID, sequence), logprobs)
        self.do(Ask.END, sequence)
        return answered

    def embed(self, tokens: Sequence[int], *, ranks: bool = False, at_once: int = 512) -> list[float]:
        """Return the vector of a text, or its rank, having granted what that takes."""
        arguments, payload = (self.number, int(ranks), at_once), packed(tokens)
        while (reply := self.app.ask(Ask.EMBED, *arguments, payload=payload)).status is Status.REFUSED:
            self.app.do(Ask.GRANT, reply.values[0])
        assert reply.status is Status.DONE, reply
        return list(struct.unpack(f"<{len(reply.payload) // 4}f", reply.payload))

    # ---- KV ----------------------------------------------------------------------------------------

    def keep(self, sequence: int) -> SealedKv:
        """Return what a sequence has, sealed."""
        reply = self.do(Ask.KEEP, sequence)
        size = reply.values[0]
        parts = [self.do(Ask.KEPT, part).payload for part in range(-(-size // KEPT_PART))]
        return SealedKv(size, reply.payload, parts)

    def resume(self, sequence: int, kv: SealedKv, *, owner: bytes = NOBODY) -> Status:
        """Have a sequence go on from it; return how it went."""
        self.do(Ask.RESUME, sequence, kv.size, *struct.unpack("<2Q", owner), payload=kv.salt)
        for number, part in enumerate(kv.parts):
            reply = self.app.ask(Ask.RESUMED, self.number, number, payload=part)
            if reply.status is not Status.DONE:
                return reply.status
        return Status.DONE


def no_tokens(_text: str) -> list[int]:
    """Return the tokens of texts where there are none to be told."""
    return []
