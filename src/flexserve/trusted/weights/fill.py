"""What is behind a chunk of weights: memory, ciphertext, plaintext; and where the time went."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Sequence

from flexserve.errors import FlexServeError
from flexserve.platforms.ports import Arena
from flexserve.trusted.memory.flexmem import FlexMem
from flexserve.trusted.weights.chunks import Weights

# Fresh memory gets its pages at first touch, which is when the ciphertext is read into it: one call
# does both, and touching every chunk first, to tell them apart, adds 2 % to a restore. So that is
# done to one chunk in so many, and the others' time is split as theirs was. It is touched twice: the
# second time has its pages, and takes as long as the first one where memory came with them.
_SAMPLED = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """What filling a chunk took: thread seconds, and its bytes."""

    allocate: float  # a place in memory, with its pages; waiting for one included
    load: float  # ciphertext from the disk
    decrypt: float
    size: int


class Filler:
    """Brings chunks into memory, and takes them out of it. Thread-safe for different chunks.

    The only one that touches what is behind a chunk: another place for weights is another Filler.

    With `sampling` off all the time of reading counts as load: for memory that has its pages already.
    """

    def __init__(self, flexmem: FlexMem, *, sampling: bool = True) -> None:
        self._flexmem = flexmem
        self._sampling = sampling
        self._zeros = os.memfd_create("zeros", os.MFD_CLOEXEC)  # a hole: /dev is not to be seen from here
        os.ftruncate(self._zeros, flexmem.chunk)
        self._filled = 0
        self._touching = 0.0  # fraction of (supply of pages and read) that is supply of pages

    def close(self) -> None:
        """Close what it reads from; nothing may be filled any more."""
        os.close(self._zeros)

    def ask(self, size: int, minimum: int) -> None:
        """Ask the OS for the memory of a restore to come, all in one: `size` bytes, at least `minimum`."""
        self._flexmem.grant(size, minimum)

    def commit(self, arena: Arena, offset: int) -> bool:
        """Put granted memory behind a chunk; False, and nothing changed, when there is none."""
        return self._flexmem.try_commit(arena, offset, self._flexmem.chunk)

    def commit_together(self, weights: Weights, chunks: Sequence[int]) -> list[list[int]]:
        """Put granted memory behind as many of the sorted `chunks` as there is for; return them, in runs.

        One call for a run: whatever moves or maps memory stops the other threads for a moment.
        """
        held: list[list[int]] = []
        size = self._flexmem.chunk
        for arena, first, run in weights.runs(chunks):
            try:
                if not self._flexmem.try_commit(arena, first * size, len(run) * size):
                    break
            except FlexServeError:
                break  # whoever commits one of them meets it, and says so
            held.append(run)
        return held

    def fill_together(self, weights: Weights, run: Sequence[int]) -> Cost:
        """Fill consecutive chunks of one buffer that have memory. Raises what the source raises.

        Then any of them may hold anything, and each is to be filled by itself.
        """
        part, first, _ = weights.locate(run[0])
        _, last, length = weights.locate(run[-1])
        size, began = (last - first) * self._flexmem.chunk + length, time.perf_counter()
        target = self._flexmem.view(weights.parts[part].arena, first * self._flexmem.chunk, size)
        touched = self._sample(target[: min(size, self._flexmem.chunk)], len(run))
        decrypt = weights.source.restore(part, first, target)
        self._filled += len(run)
        supply, load = self._split(time.perf_counter() - began - decrypt, touched, len(run))
        return Cost(supply, load, decrypt, size)

    def release(self, arena: Arena, offset: int, length: int, *, keep_grants: bool = False) -> int:
        """Take the memory behind a range, and give it to the OS or keep its grant; return its bytes."""
        give_up = self._flexmem.recycle if keep_grants else self._flexmem.release
        return give_up(arena, offset, length)

    def read_ahead(self, weights: Weights, chunks: Iterable[int]) -> None:
        """Ask the disk for chunks ahead of need."""
        for chunk in chunks:
            part, index, _ = weights.locate(chunk)
            weights.source.prefetch(part, index, 1)

    def fill(self, weights: Weights, chunk: int, commit: Callable[[Arena, int], bool]) -> Cost | None:
        """Bring a chunk that the caller claimed (LOADING) into memory; its state stays.

        `commit` puts memory behind (arena, offset), or returns False, and then so does this: None.
        Raises what commit or the source raise; the chunk has no memory then, and the normal world
        was told of it.
        """
        part, index, length = weights.locate(chunk)
        arena, offset = weights.parts[part].arena, index * self._flexmem.chunk
        began = time.perf_counter()
        if not commit(arena, offset):
            return None
        try:
            target = self._flexmem.view(arena, offset, length)
            committed = time.perf_counter()
            touched = self._sample(target, 1)
            decrypt = weights.source.restore(part, index, target)
        except BaseException:
            self._flexmem.report_returned(self._flexmem.release(arena, offset, self._flexmem.chunk))
            raise
        self._filled += 1  # two threads may count one: no matter
        supply, load = self._split(time.perf_counter() - committed - decrypt, touched, 1)
        return Cost(committed - began + supply, load, decrypt, length)

    def _sample(self, target: memoryview, count: int) -> tuple[float, float] | None:
        """Touch a chunk twice if one of the next `count` is to be sampled; return the seconds of both."""
        due = self._sampling and -self._filled % _SAMPLED < count
        return (self.touch(target), self.touch(target)) if due else None

    def _split(self, both: float, touched: tuple[float, float] | None, count: int) -> tuple[float, float]:
        """Split the seconds for the OS's supply of pages and for reading `count` chunks; return each.

        `touched`: what touching one of them took, which is no part of `both`, and touching it again.
        """
        if touched is not None:
            first, again = touched
            both -= 2 * again
            supply = min(1.0, max(0.0, first - again) * count / both) if both > 0 else 0.0
            self._touching = (self._touching + supply) / 2 if self._touching else supply
        return both * self._touching, both * (1 - self._touching)

    def touch(self, target: memoryview) -> float:
        """Have the OS supply the pages of `target`, zeroed, without the interpreter lock; return seconds."""
        began = time.perf_counter()
        os.preadv(self._zeros, [target], 0)
        return time.perf_counter() - began
