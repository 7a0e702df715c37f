"""The data path of weights and KV: between the application at S-EL0 and a disk of the guest's.

Weights come by DMA. The guest's disk writes ciphertext into pages that are the guest's; the driver hands
these over; the application decrypts them where they are, or wipes them. No CPU copies a byte. KV goes the
other way: what is sealed comes in messages, is put into a buffer of the driver's, and is written to the
disk from there. It is little, and memory that comes back to the guest is overwritten, so it brings nothing
with it."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Protocol

from flexserve.errors import GrantRefusedError, NormalWorldError, StoredDataError
from flexserve.platforms.trustzone.disk_image import SLOT, SLOT_PAGES, TAG, DiskImage, Piece, StoredObject
from flexserve.platforms.trustzone.ram import PAGE
from flexserve.tee_client.link import Link
from flexserve.tee_client.messages import Ask, Reply, Status, broken

_RUN = struct.Struct("<2Q")  # a page, how many
_MOST = 1 << 40  # pages
_NO_MEMORY = "Cannot allocate memory"  # the guest's words

Run = tuple[int, int]  # the number of a page, how many


class Guest(Protocol):
    """The guest whose disk it is: what a program of its would do, with its driver's buffer mapped."""

    buffer: memoryview

    def disk(self, *words: str) -> Mapping[str, object]:
        """Have the driver carry a command out (driver/flexmem/disk.c). Raises NormalWorldError."""


class GuestBlocks:
    """The disk's blocks by way of the driver's buffer. Thread-safe."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._using = threading.Lock()
        self._pages = len(guest.buffer) // PAGE

    def read(self, page: int, pages: int) -> bytes:
        """Return pages, as Blocks has it."""
        parts = []
        with self._using:
            for first in range(0, pages, self._pages):
                count = min(self._pages, pages - first)
                _commanded(self._guest, "read", page + first, count)
                parts.append(self._guest.buffer[: count * PAGE].tobytes())
        return b"".join(parts)

    def write(self, page: int, data: bytes) -> None:
        """Write pages, as Blocks has it."""
        size = self._pages * PAGE
        with self._using:
            for first in range(0, len(data), size):
                part = data[first : first + size]
                self._guest.buffer[: len(part)] = part
                _commanded(self._guest, "write", page + first // PAGE, -(-len(part) // PAGE))

    def flush(self) -> None:
        """Have them stay."""
        _commanded(self._guest, "flush")


class Disk:
    """The application's weights on a disk of the guest's. Thread-safe."""

    def __init__(self, guest: Guest, link: Link) -> None:
        """Read what the disk has. Raises StoredDataError, NormalWorldError."""
        self._guest, self._link = guest, link
        self.image = DiskImage(GuestBlocks(guest))

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

    def room(self) -> int:
        """Return the bytes that the guest could hand over; less than 0: it lacks them. Raises as `load`."""
        pages = _commanded(self._guest, "room").get("pages")
        if not isinstance(pages, int) or not -_MOST < pages < _MOST:
            raise _nonsense()
        return pages * PAGE

    def load(self, weights: StoredObject, model: int, chunk: int) -> Reply:
        """Load a chunk of an open model into pages of its own; return what the application answers.

        DAMAGED: what the disk had is not what was sealed; it is wiped, and its memory is unused. Any other
        answer but DONE: the guest has the pages back. Raises GrantRefusedError when the guest has no memory,
        StoredDataError for what its disk says, NormalWorldError.
        """
        piece = weights.pieces[chunk]
        runs = self.grant(piece)
        pages = b"".join(_RUN.pack(*run) for run in runs)
        reply = self._link.ask(Ask.LOAD_PAGES, model, chunk, payload=piece.tag + pages)
        if reply.status not in (Status.DONE, Status.DAMAGED):
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
            hint="Look at the machine's console, and whether the host's disk has room.",
            code="disk_unreadable",
        ) from None


def _number(answer: Mapping[str, object], name: str) -> int:
    value = answer.get(name)
    if not isinstance(value, int) or not 0 < value < _MOST:
        raise _nonsense()
    return value


def _nonsense() -> NormalWorldError:
    return NormalWorldError("The guest answers nonsense about its disk.", hint="Restart the machine.")
