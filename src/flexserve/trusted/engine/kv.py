"""The KV cache's memory, sequence by sequence.

llama.cpp lays the cache out in streams: each of its tensors is (row, cells, streams), and a graph
touches the streams of its own sequences only. So the memory of a sequence can be there while that
of another is not. What is not laid out in streams (the state of recurrent models) is needed by all.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from flexserve.platforms.ports import Arena
from flexserve.trusted.memory.flexmem import FlexMem

_Mask = NDArray[np.bool_]


class KvCache:
    """Which chunks of the KV buffers each sequence needs, and which sequences have memory.

    `take` may be called for a sequence while another thread calls `release` for others, which no
    running graph reads.
    """

    def __init__(self, flexmem: FlexMem, streams: int) -> None:
        self._flexmem, self._streams = flexmem, streams
        self._needs: dict[Arena, list[_Mask]] = {}  # by stream
        self._held: set[int] = set()  # sequences with memory
        self._lock = threading.Lock()

    def add(self, arena: Arena, address: int, size: int, shape: Sequence[int], stride: int) -> None:
        """Record a KV tensor: `size` bytes at `address`, `stride` bytes from stream to stream."""
        count = arena.size // self._flexmem.chunk
        masks = self._needs.setdefault(arena, [np.zeros(count, np.bool_) for _ in range(self._streams)])
        in_streams = shape[2] == self._streams and shape[3] == 1 and stride * self._streams == size
        for stream, mask in enumerate(masks):
            start = address - arena.base + (stream * stride if in_streams else 0)
            stop = start + (stride if in_streams else size)
            mask[start // self._flexmem.chunk : -(-stop // self._flexmem.chunk)] = True

    def has(self, arena: Arena) -> bool:
        """Return whether KV is in `arena`."""
        return arena in self._needs

    def take(self, sequence: int) -> None:
        """Put memory behind `sequence`: zeros where there was none. Raises GrantRefusedError."""
        with self._lock:  # a release under way ends first, and none takes what we need from here on
            self._held.add(sequence)
        needs = {arena: masks[sequence] for arena, masks in self._needs.items()}
        held = sum(self._flexmem.committed(arena, mask) for arena, mask in needs.items())
        wanted = sum(int(np.count_nonzero(mask)) for mask in needs.values()) * self._flexmem.chunk
        self._flexmem.grant(wanted - held)  # all at once: each layer's part would be a question of its own
        for arena, mask in needs.items():
            self._flexmem.commit_missing(arena, mask)

    def holds(self, sequence: int) -> bool:
        """Return whether `sequence` has memory."""
        return sequence in self._held

    def release(self, sequences: Collection[int], *, keep_grants: bool = False) -> int:
        """Give back what only `sequences` need; return the bytes."""
        give_up = self._flexmem.recycle_all if keep_grants else self._flexmem.release_all
        with self._lock:
            self._held.difference_update(sequences)
            return sum(give_up(arena, ~self._kept(masks)) for arena, masks in self._needs.items())

    def committed(self, sequences: Collection[int] | None = None) -> int:
        """Return the committed bytes: all, or what a release of `sequences` would bring."""
        if sequences is None:
            return sum(self._flexmem.committed(arena) for arena in self._needs)
        with self._lock:
            return sum(
                self._flexmem.committed(arena, ~self._kept(masks, sequences))
                for arena, masks in self._needs.items()
            )

    def _kept(self, masks: list[_Mask], released: Collection[int] = ()) -> _Mask:
        kept = np.zeros_like(masks[0])
        for sequence in self._held.difference(released):
            kept |= masks[sequence]
        return kept
