"""A model's weights as numbered chunks: what they are, where they come back from, which are there."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flexserve.platforms.ports import Arena
from flexserve.trusted.weights.states import RESIDENT, ChunkState, ChunkTable


class WeightSource(Protocol):
    """Where evicted weights come back from (trusted.store.image.Image)."""

    def restore(self, buffer: int, index: int, target: memoryview) -> float:
        """Fill `target` with the chunks from `index` of `buffer` on, authenticated.

        It ends with a chunk. Returns seconds of decryption.
        """

    def read(self, buffer: int, index: int, target: memoryview) -> None:
        """Fill `target` with the ciphertext of the chunks: the first half of `restore`."""

    def decrypt(self, buffer: int, index: int, target: memoryview) -> float:
        """Replace the ciphertext in `target` by its plaintext: the second half; return its seconds."""

    def prefetch(self, buffer: int, index: int, count: int) -> None:
        """Ask the disk for chunks ahead of need."""


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """One weight buffer: its arena and its size in bytes."""

    arena: Arena
    size: int


class Weights:
    """The weights of one model as numbered chunks, over all of its buffers.

    `table` changes only under the loader's lock.
    """

    def __init__(self, name: str, parts: Sequence[Part], source: WeightSource, chunk: int) -> None:
        self.name = name
        self.parts = tuple(parts)
        self.source = source
        self._chunk = chunk
        counts = [part.arena.size // chunk for part in self.parts]
        self._bases = [sum(counts[:i]) for i in range(len(counts))]
        self.count = sum(counts)
        self.table = ChunkTable(self.count)
        self.usual: list[int] = []  # load order, once a graph was seen
        self.read = 0  # the most that any graph read that was seen; 0: unknown

    @property
    def size(self) -> int:
        """Bytes of all weight buffers."""
        return sum(part.size for part in self.parts)

    @property
    def states(self) -> NDArray[np.uint8]:
        """The state of each chunk, to read; the array follows the table."""
        return self.table.states

    @property
    def whole(self) -> bool:
        """Whether all chunks are in memory."""
        return self.table.whole

    @property
    def resident(self) -> int:
        """Bytes of weights in memory."""
        return min(self.size, self.table.count(ChunkState.RESIDENT) * self._chunk)

    def eviction_order(self) -> list[int]:
        """Return the resident chunks, first the one whose loss costs least (the end of the layers)."""
        order = self.usual or range(self.count)
        return [g for g in reversed(order) if self.states[g] == RESIDENT]

    def locate(self, chunk: int) -> tuple[int, int, int]:
        """Return (buffer, index in it, bytes) of a chunk."""
        part = bisect.bisect_right(self._bases, chunk) - 1
        index = chunk - self._bases[part]
        return part, index, min(self._chunk, self.parts[part].size - index * self._chunk)

    def base(self, part: int) -> int:
        """Return the number of the first chunk of buffer `part`."""
        return self._bases[part]

    def runs(self, chunks: Sequence[int]) -> list[tuple[Arena, int, list[int]]]:
        """Group sorted chunks into (arena, first index, chunks) of consecutive ones in one arena."""
        found: list[tuple[Arena, int, list[int]]] = []
        for chunk in chunks:
            part, index, _ = self.locate(chunk)
            arena = self.parts[part].arena
            last = found[-1] if found else None
            if last and last[0] is arena and last[1] + len(last[2]) == index:
                last[2].append(chunk)
            else:
                found.append((arena, index, [chunk]))
        return found
