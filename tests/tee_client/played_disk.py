"""Disks of a guest that are played in Python: the guest may be out of memory, a disk may lie."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from played_application import CHUNK, PlayedApplication

from flexserve.errors import GrantRefusedError, NormalWorldError
from flexserve.platforms.trustzone.disk_image import SLOT, SLOT_PAGES, TAG, DiskImage
from flexserve.platforms.trustzone.ram import PAGE
from flexserve.tee_client.link import Link
from flexserve.tee_client.messages import Ask, Reply

BUFFER_PAGES = 128
SLOTS = 32  # of a PlayedDisk


class MemoryBlocks:
    """A disk that forgets what was not flushed when its power goes."""

    def __init__(self, pages: int) -> None:
        self.data = bytearray(pages * PAGE)
        self.after: list[tuple[int, bytes]] = []  # writes since the last flush
        self.most_writes: int | None = None  # then power goes

    def read(self, page: int, pages: int) -> bytes:
        return bytes(self.data[page * PAGE : (page + pages) * PAGE])

    def write(self, page: int, data: bytes) -> None:
        if self.most_writes is not None:
            if self.most_writes == 0:
                raise PowerGoneError
            self.most_writes -= 1
        place = slice(page * PAGE, page * PAGE + len(data))
        self.after.append((page, bytes(self.data[place])))
        self.data[place] = data

    def flush(self) -> None:
        if self.most_writes == 0:
            raise PowerGoneError
        self.after = []

    def lose_power(self, torn: int) -> None:
        """Undo what was not flushed; of the last write, its first `torn` bytes stay."""
        if self.after:
            page, before = self.after.pop()
            self.data[page * PAGE + torn : page * PAGE + len(before)] = before[torn:]
        for page, before in reversed(self.after):
            self.data[page * PAGE : page * PAGE + len(before)] = before
        self.after, self.most_writes = [], None


class PowerGoneError(Exception):
    """The disk has no power."""


class PlayedGuest:
    """A guest with this disk. Pages that it hands over are numbered from 1000 on."""

    def __init__(self, blocks: MemoryBlocks) -> None:
        self.blocks = blocks
        self.buffer = memoryview(bytearray(BUFFER_PAGES * PAGE))
        self.granted: dict[int, bytes] = {}  # by the first page; what was read to there
        self.memory_left = 1 << 30  # slots
        self.answers: Mapping[str, object] | None = None  # instead of the truth
        self._next = 1000
        self._one = threading.Lock()

    def disk(self, *words: str) -> Mapping[str, object]:
        name, *rest = words
        numbers = [int(word) for word in rest]
        with self._one:
            if self.answers is not None:
                return self.answers
            match name:
                case "read":
                    data = self.blocks.read(*numbers)
                    self.buffer[: len(data)] = data
                case "write":
                    page, pages = numbers
                    self.blocks.write(page, bytes(self.buffer[: pages * PAGE]))
                case "flush":
                    self.blocks.flush()
                case "grant":
                    return self._grant(*numbers)
                case "room":
                    return {"pages": self.memory_left * SLOT_PAGES}
                case "return":
                    self.granted.pop(numbers[0])
            return {}

    def _grant(self, page: int, pages: int) -> Mapping[str, object]:
        assert pages == SLOT_PAGES
        if not self.memory_left:
            raise NormalWorldError(
                "The guest cannot do 'disk': Cannot allocate memory.", code="guest_refused"
            )
        self.memory_left -= 1
        first, half = self._next, pages // 2
        self._next += 3 * pages
        self.granted[first] = self.blocks.read(page, half)
        self.granted[first + pages] = self.blocks.read(page + half, half)
        return {str(first): half, str(first + pages): half}


class PlayedDisk:
    """A disk whose guest hands over a page of its own for each chunk that it reads."""

    def __init__(self, played: PlayedApplication, link: Link, blocks: MemoryBlocks | None = None) -> None:
        """`blocks`: what an earlier one left."""
        self._played, self._link = played, link
        self.blocks = blocks or MemoryBlocks(SLOTS * SLOT_PAGES)
        self.image = DiskImage(blocks) if blocks else DiskImage.create(self.blocks, SLOTS * SLOT)
        self.read = 0  # chunks
        self.refusals: dict[int, int] = {}  # of a chunk: how often the guest has memory, but not for it

    def seal(self, name: str, model: int, chunks: int) -> None:
        replies = [self._link.ask(Ask.SEAL, model, chunk) for chunk in range(chunks)]
        head = b"".join(value.to_bytes(8, "little") for value in replies[0].values[:4])
        self.image.put(name, head, ((reply.payload[:-TAG], reply.payload[-TAG:]) for reply in replies))

    def room(self) -> int:
        return (self._played.memory - self._played.granted) * CHUNK

    def load(self, stored: Any, model: int, chunk: int) -> Reply:
        played = self._played
        self.refusals[chunk] = self.refusals.get(chunk, 0) - 1
        if played.granted >= played.memory or self.refusals[chunk] >= 0:
            raise GrantRefusedError("The guest has no memory.", missing=CHUNK)
        played.granted += 1
        played.unused += 1
        self.read += 1
        piece = stored.pieces[chunk]
        return self._link.ask(Ask.LOAD, model, chunk, payload=self.image.read(piece) + piece.tag)
