"""The data path of weights and KV: between the application at S-EL0 and a disk of the guest's.

Weights come by DMA. The guest's disk writes ciphertext into pages that are the guest's; the driver hands
these over; the application decrypts them where they are, or wipes them. No CPU copies a byte. KV goes the
other way: what is sealed comes in messages, is put into a buffer of the driver's, and is written to the
disk from there. It is little, and memory that comes back to the guest is overwritten, so it brings nothing
with it."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Protocol

from flexserve.errors import GrantRefusedError, NormalWorldError, StoredDataError
from flexserve.platforms.trustzone.ram import PAGE
from flexserve.tee_client.disk_image import SLOT, SLOT_PAGES, TAG, DiskImage, Piece, StoredObject, damaged
from flexserve.tee_client.link import Link
from flexserve.tee_client.messages import KEPT_PART, Ask, Reply, Status, broken

_RUN = struct.Struct("<2Q")  # a page, how many
_KV = struct.Struct("<Q32s")  # bytes of plaintext, salt
_SEALED_PART = KEPT_PART + TAG
_PARTS = SLOT // _SEALED_PART  # of KV in a piece
_NO_MEMORY = "Cannot allocate memory"  # the guest's words

Run = tuple[int, int]  # the number of a page, how many


class Guest(Protocol):
    """The guest whose disk it is: what a program of its would do, with its driver's buffer mapped."""

    def disk(self, *words: str) -> Mapping[str, object]:
        """Have the driver carry a command out (driver/flexmem/disk.c). Raises NormalWorldError."""

    def memory(self, page: int, pages: int) -> memoryview:
        """Return `pages` of its pages from the one with number `page` on."""


class GuestBlocks:
    """The disk's blocks by way of the driver's buffer. Thread-safe."""

    def __init__(self, guest: Guest) -> None:
        """Find the buffer. Raises NormalWorldError."""
        self._guest = guest
        self._using = threading.Lock()
        answer = guest.disk("buffer")
        self._pages = _number(answer, "pages")
        self._buffer = guest.memory(_number(answer, "page"), self._pages)

    def read(self, page: int, pages: int) -> bytes:
        """Return pages, as Blocks has it."""
        parts = []
        with self._using:
            for first in range(0, pages, self._pages):
                count = min(self._pages, pages - first)
                _commanded(self._guest, "read", page + first, count)
                parts.append(self._buffer[: count * PAGE].tobytes())
        return b"".join(parts)

    def write(self, page: int, data: bytes) -> None:
        """Write pages, as Blocks has it."""
        size = self._pages * PAGE
        with self._using:
            for first in range(0, len(data), size):
                part = data[first : first + size]
                self._buffer[: len(part)] = part
                _commanded(self._guest, "write", page + first // PAGE, -(-len(part) // PAGE))

    def flush(self) -> None:
        """Have them stay."""
        _commanded(self._guest, "flush")


class Disk:
    """The application's weights and KV on a disk of the guest's. Thread-safe."""

    def __init__(self, guest: Guest, link: Link) -> None:
        """Read what the disk has. Raises StoredDataError, NormalWorldError."""
        self._guest, self._link = guest, link
        self.image = DiskImage(GuestBlocks(guest))

    # ---- weights ----------------------------------------------------------------------------------

    def seal(self, name: str, model: int, chunks: int) -> StoredObject:
        """Have the application seal the weights of an open model, once; keep the image as an object.

        Its head is the image's salt: Ask.IMAGE takes it. Raises PeerError when it does not seal them, and as
        DiskImage.put.
        """
        first = self._sealed(model, 0)
        rest = (self._sealed(model, chunk) for chunk in range(1, chunks))
        pieces = ((each.payload[:-TAG], each.payload[-TAG:]) for each in chain([first], rest))
        return self.image.put(name, struct.pack("<4Q", *first.values[:4]), pieces)

    def _sealed(self, model: int, chunk: int) -> Reply:
        reply = self._link.ask(Ask.SEAL, model, chunk)
        if reply.status is not Status.DONE or len(reply.payload) <= TAG:
            raise broken("it does not seal weights")
        return reply

    def load(self, weights: StoredObject, model: int, chunks: Sequence[int]) -> Reply | None:
        """Load chunks of an open model; return the first answer that is not DONE, after which none is loaded.

        While the application decrypts a chunk, the disk reads the next one. DAMAGED: what the disk had is not
        what was sealed; that chunk is wiped, and its memory is unused. Raises GrantRefusedError when the
        guest has no memory, StoredDataError for what its disk says, NormalWorldError.
        """
        with ThreadPoolExecutor(1, "disk") as reader:
            coming = self._ahead(reader, weights, chunks[:1])
            for place, chunk in enumerate(chunks):
                assert coming is not None
                runs = coming.result()
                coming = self._ahead(reader, weights, chunks[place + 1 : place + 2])
                reply = self._taken(weights.pieces[chunk], model, chunk, runs)
                if reply.status is not Status.DONE:
                    if coming is not None and coming.exception() is None:
                        self._give_back(coming.result())
                    return reply
        return None

    def _ahead(
        self, reader: ThreadPoolExecutor, weights: StoredObject, chunks: Sequence[int]
    ) -> Future[list[Run]] | None:
        return reader.submit(self.grant, weights.pieces[chunks[0]]) if chunks else None

    def _taken(self, piece: Piece, model: int, chunk: int, runs: Iterable[Run]) -> Reply:
        pages = b"".join(_RUN.pack(*run) for run in runs)
        reply = self._link.ask(Ask.LOAD_PAGES, model, chunk, payload=piece.tag + pages)
        if reply.status is Status.BAD:
            self._give_back(runs)
        return reply

    def grant(self, piece: Piece) -> list[Run]:
        """Have the guest read a whole slot into fresh pages and hand them over; return them in its order.

        Raises as `load`.
        """
        answer = _commanded(self._guest, "grant", piece.slot * SLOT_PAGES, SLOT_PAGES)
        runs = [(int(page), _number(answer, page)) for page in answer if page.isdecimal()]
        if len(runs) != len(answer) or sum(count for _, count in runs) != SLOT_PAGES:
            raise _nonsense()
        return runs

    def _give_back(self, runs: Iterable[Run]) -> None:
        """Let the guest have pages back that were handed over for nothing; others stay."""
        for first, count in runs:
            _commanded(self._guest, "return", first, count)

    # ---- KV ---------------------------------------------------------------------------------------

    def keep(self, name: str, model: int, sequence: int) -> Reply:
        """Keep a sequence's KV as an object; return what the application answers. Raises as DiskImage.put."""
        with self._link.turn():
            reply = self._link.ask(Ask.KEEP, model, sequence)
            if reply.status is Status.DONE:
                size, salt = reply.values[0], reply.payload
                self.image.put(name, _KV.pack(size, salt), self._kept(model, -(-size // KEPT_PART)))
        return reply

    def _kept(self, model: int, parts: int) -> Iterator[tuple[bytes, bytes]]:
        for first in range(0, parts, _PARTS):
            piece = b""
            for number in range(first, min(first + _PARTS, parts)):
                reply = self._link.ask(Ask.KEPT, model, number)
                if reply.status is not Status.DONE:
                    raise broken("it does not seal KV")
                piece += reply.payload
            yield piece, bytes(TAG)

    def resume(self, name: str, model: int, sequence: int) -> Reply:
        """Have a sequence go on from an object; return the answer that is not DONE, or the last one.

        DAMAGED: it is not what was sealed. Raises StoredDataError when there is no such object, or it is none
        of KV, and NormalWorldError.
        """
        stored = self.image.objects().get(name)
        if stored is None or len(stored.head) != _KV.size:
            raise damaged("it has no such KV, or a write of it was torn")
        size, salt = _KV.unpack(stored.head)
        with self._link.turn():
            reply = self._link.ask(Ask.RESUME, model, sequence, size, payload=salt)
            number = 0
            for piece in stored.pieces:
                data = self.image.read(piece)
                for first in range(0, len(data), _SEALED_PART):
                    if reply.status is not Status.DONE:
                        return reply
                    part = data[first : first + _SEALED_PART]
                    reply = self._link.ask(Ask.RESUMED, model, number, payload=part)
                    number += 1
        return reply


def _commanded(guest: Guest, name: str, *numbers: int) -> Mapping[str, object]:
    try:
        return guest.disk(name, *(str(number) for number in numbers))
    except NormalWorldError as error:
        if error.code != "guest_refused":
            raise
        if _NO_MEMORY in error.message:
            raise GrantRefusedError(
                "The guest has no memory to read weights into.", hint="Try again later.", missing=SLOT
            ) from None
        raise StoredDataError(
            f"The machine's disk does not {name}: {error.message}",
            hint="Look at the machine's console.",
            code="disk_unreadable",
        ) from None


def _number(answer: Mapping[str, object], name: str) -> int:
    value = answer.get(name)
    if not isinstance(value, int) or not 0 < value < 1 << 40:
        raise _nonsense()
    return value


def _nonsense() -> NormalWorldError:
    return NormalWorldError("The guest answers nonsense about its disk.", hint="Restart the machine.")
