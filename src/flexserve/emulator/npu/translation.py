"""From the addresses of a job to bytes of RAM: the driver's page tables, then the monitor's.

An address of a job (IOVA) is translated by the driver's two-level tables, in the format of Rockchip's
IOMMU; while paging is off, nothing can be reached. Every physical address, those of the driver's tables
included, is then looked up in the monitor's tree, a stage-1 tree of VMSAv8-64 with 4 KiB pages and 32-bit
input addresses, and only what that gives is ever reached. Nothing is remembered: each burst walks anew.

Both tables are hostile here: whatever they say, an access ends in RAM or in a fault. Arrays hold a whole
burst, with one entry for each piece of it that lies in one page.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BURST_BYTES = 256 << 10
BURST_ROWS = 4096

Longs = NDArray[np.int64]

_PAGE_BITS, _PAGE = 12, 4096
_NOWHERE = -1

# Entries of the monitor's tree.
_UPPER = (30, 21)  # bits of an address below the indices of the upper two levels
_REGION_BITS, _REGION = 21, 1 << 21  # what a table of leaves translates
_ENTRIES = 512
_KIND, _BLOCK, _NEXT, _PAGE_LEAF = 3, 1, 3, 3
_READ_ONLY, _ACCESSED = 1 << 7, 1 << 10
_ADDRESS = (1 << 48) - _PAGE

# Entries of the driver's tables: a directory of 1024 tables of 1024 pages, 32 bits each.
_TABLE_BITS, _SLOTS = 22, 1024
_PRESENT, _READABLE, _WRITABLE = 1, 1 << 1, 1 << 2
_PHYSICAL = 0xFFFF_F000


class DmaError(Exception):
    """An access that was stopped, before a byte of its burst was touched."""

    def __init__(self, iova: int, *, write: bool, by_monitor: bool) -> None:
        super().__init__()
        self.iova, self.write, self.by_monitor = iova, write, by_monitor


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """`count` rows of `width` bytes, the first at address `start`, `stride` bytes from each to the next."""

    start: int
    stride: int
    count: int
    width: int

    def part(self, first: int, count: int) -> Rows:
        """Return `count` of the rows, from `first` on."""
        return Rows(self.start + first * self.stride, self.stride, count, self.width)

    def bursts(self) -> Iterator[tuple[int, Rows]]:
        """Cut into bursts: each with its place (bytes) among the rows' bytes, one behind the other."""
        if self.stride == self.width or self.count == 1:
            for at in range(0, self.count * self.width, BURST_BYTES):
                yield at, Rows(self.start + at, 0, 1, min(BURST_BYTES, self.count * self.width - at))
            return
        step = min(BURST_ROWS, max(1, BURST_BYTES // self.width))
        for first in range(0, self.count, step):
            yield first * self.width, self.part(first, min(step, self.count - first))


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """What translates a burst: the monitor's tree and the driver's directory (None: paging is off)."""

    root: int
    directory: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class _Region:
    """2 MiB of physical addresses: where in RAM their leaves are, or they themselves, let through whole."""

    table: int = _NOWHERE
    block: int = _NOWHERE


class Port:
    """The device's way to RAM, which lies from physical address `base` on. There is no other."""

    def __init__(self, memory: memoryview, base: int) -> None:
        self._memory, self._base = memory, base
        self._entries = np.frombuffer(memory, np.int64)
        self._words = np.frombuffer(memory, np.uint32)

    def read(self, context: Context, rows: Rows, into: memoryview) -> None:
        """Fill `into` with a burst. Raises DmaError, having read nothing."""
        for at, place, size in self._pieces(context, rows, write=False):
            into[at : at + size] = self._memory[place : place + size]

    def write(self, context: Context, rows: Rows, data: memoryview) -> None:
        """Write a burst. Raises DmaError, having written nothing."""
        for at, place, size in self._pieces(context, rows, write=True):
            self._memory[place : place + size] = data[at : at + size]

    def _pieces(self, context: Context, rows: Rows, *, write: bool) -> Iterator[tuple[int, int, int]]:
        """Cut a burst at page boundaries: place among the burst's bytes, place in RAM, bytes."""
        starts = rows.start + rows.stride * np.arange(rows.count)
        ends = starts + rows.width
        pages = ((ends - 1) >> _PAGE_BITS) - (starts >> _PAGE_BITS) + 1
        before = np.cumsum(pages) - pages
        nth = np.arange(int(pages.sum())) - np.repeat(before, pages)
        page = np.repeat(starts >> _PAGE_BITS, pages) + nth
        begin = np.maximum(page << _PAGE_BITS, np.repeat(starts, pages))
        sizes = np.minimum((page + 1) << _PAGE_BITS, np.repeat(ends, pages)) - begin
        places = self._translated(context, begin, write=write)
        return zip((np.cumsum(sizes) - sizes).tolist(), places.tolist(), sizes.tolist(), strict=True)

    def _translated(self, context: Context, iovas: Longs, *, write: bool) -> Longs:
        """Return where `iovas` lie in RAM. Raises DmaError for the first that may not be reached."""
        if context.directory is None:
            raise DmaError(int(iovas[0]), write=write, by_monitor=False)
        tables, absent, stopped = self._tables(context.root, context.directory, iovas)
        entries = self._words[np.where(tables < 0, 0, (tables >> 2) + (iovas >> _PAGE_BITS) % _SLOTS)]
        needed = _PRESENT | (_WRITABLE if write else _READABLE)
        refused = absent | (~stopped & (entries & needed != needed))
        physical = (entries & _PHYSICAL).astype(np.int64) | iovas % _PAGE
        places = self._walk(context.root, physical, write=write)
        stopped = stopped | (~refused & (places < 0))
        bad = refused | stopped
        if bad.any():
            first = int(bad.argmax())
            raise DmaError(int(iovas[first]), write=write, by_monitor=bool(stopped[first]))
        return places

    def _tables(
        self, root: int, directory: int, iovas: Longs
    ) -> tuple[Longs, NDArray[np.bool], NDArray[np.bool]]:
        """Return where the driver's second-level tables lie, which are absent, which the monitor keeps."""
        (place,) = self._walk(root, np.array([directory & _PHYSICAL]), write=False)
        if place < 0:
            nowhere = np.full(iovas.shape, _NOWHERE)
            return nowhere, np.zeros(iovas.shape, bool), np.ones(iovas.shape, bool)
        entries = self._words[(place >> 2) + (iovas >> _TABLE_BITS)].astype(np.int64)
        absent = entries & _PRESENT == 0
        tables = np.where(absent, _NOWHERE, self._walk(root, entries & _PHYSICAL, write=False))
        return tables, absent, ~absent & (tables < 0)

    def _walk(self, root: int, addresses: Longs, *, write: bool) -> Longs:
        """Return where physical addresses lie in RAM; -1 where the monitor's tree does not allow it."""
        regions = (addresses >> _REGION_BITS).tolist()
        known = {region: self._region(root, region, write) for region in set(regions)}
        tables = np.array([known[region].table for region in regions])
        blocks = np.array([known[region].block for region in regions])
        slots = np.where(tables < 0, 0, (tables >> 3) + (addresses >> _PAGE_BITS) % _ENTRIES)
        entries = np.where(tables < 0, 0, self._entries[slots])
        offsets = (entries & _ADDRESS) - self._base
        offsets += addresses % _PAGE
        leaf = (entries & (_KIND | _ACCESSED | _READ_ONLY * write)) == _PAGE_LEAF | _ACCESSED
        leaf &= (offsets >= 0) & (offsets < len(self._memory))
        places = np.where(leaf, offsets, _NOWHERE)
        return np.where(blocks < 0, places, blocks + addresses % _REGION)

    def _region(self, root: int, region: int, write: bool) -> _Region:
        """Walk the two upper levels."""
        table, address = root, region << _REGION_BITS
        for shift in _UPPER:
            if not self._holds(table, _PAGE):
                return _Region()
            entry = int(self._entries[(table - self._base) // 8 + (address >> shift) % _ENTRIES])
            target = entry & _ADDRESS
            if entry & (_KIND | _ACCESSED | _READ_ONLY * write) == _BLOCK | _ACCESSED:
                start = (target & -1 << shift) + address % (1 << shift)
                return _Region(block=start - self._base) if self._holds(start, _REGION) else _Region()
            if entry & _KIND != _NEXT:
                return _Region()
            table = target
        return _Region(table=table - self._base) if self._holds(table, _PAGE) else _Region()

    def _holds(self, address: int, size: int) -> bool:
        return address % size == 0 and 0 <= address - self._base <= len(self._memory) - size
