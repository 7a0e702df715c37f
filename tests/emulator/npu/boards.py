"""A board for the device: RAM, the monitor's tree and the driver's tables, written from the docs alone."""

from __future__ import annotations

import errno
import mmap
import os
import random
import struct
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from by_hand import FP16, INT8, Q8, by_hand, row, tame_half

from flexserve.emulator.npu.device import Device
from flexserve.platforms.trustzone import layout

BASE, PAGE, MIB = 0x4000_0000, 4096, 1 << 20
RAM = 26 * MIB  # the least that has all of the monitor's

DONE, READ_FAULT, WRITE_FAULT, BAD = 1, 1 << 4, 1 << 5, 1 << 6
PAGING, FAULT, IDLE, BY_MONITOR = 1, 2, 4, 16
REUSE = 1 << 8
OP_EN, DATA_ADDR, DATA_AMOUNT = 0x08, 0x10, 0x14
INT_MASK, INT_CLEAR, INT_STATUS, INT_RAW = 0x20, 0x24, 0x28, 0x2C
TASK_CON, DMA_BASE, TASK_STATUS = 0x30, 0x34, 0x3C
DTE_ADDR, MMU_STATUS, MMU_COMMAND, FAULT_ADDR = 0x9000, 0x9004, 0x9008, 0x900C
ROOT, RESET, RESET_DONE, FLUSH, FLUSH_DONE, BUSY = 0x00, 0x08, 0x0C, 0x10, 0x14, 0x18


class Board:
    """RAM with a device on it. Physical pages are handed out by `page` and `pages`, in a scattered order."""

    def __init__(self, seed: int = 0, device: type[Device] = Device) -> None:
        self._ram = os.fdopen(
            os.memfd_create("ram"), "r+b", buffering=0
        )  # looked at when the device is closed
        self._ram.truncate(RAM)
        self.memory = memoryview(mmap.mmap(self._ram.fileno(), RAM))
        self.window_at, self.control_at = layout.npu_window_offset(RAM), layout.npu_control_offset(RAM)
        self.device = device(self.memory, BASE, threads=2)
        free = np.arange(BASE + PAGE, BASE + 2 * MIB, PAGE)
        np.random.default_rng(seed).shuffle(free)
        self._free = free.tolist()
        self.tree = self.page()
        self.directory = self.page()
        self._middle: dict[int, int] = {}
        self._tables: dict[int, int] = {}
        self.let(self.directory)
        self.control64(ROOT, self.tree)

    def close(self) -> None:
        self.device.close()

    # ---- words

    def read(self, register: int) -> int:
        return int(struct.unpack_from("<I", self.memory, self.window_at + register)[0])

    def write(self, register: int, value: int) -> None:
        struct.pack_into("<I", self.memory, self.window_at + register, value)

    def control(self, offset: int) -> int:
        return int(struct.unpack_from("<I", self.memory, self.control_at + offset)[0])

    def set_control(self, offset: int, value: int) -> None:
        struct.pack_into("<I", self.memory, self.control_at + offset, value)

    def control64(self, offset: int, value: int) -> None:
        struct.pack_into("<Q", self.memory, self.control_at + offset, value)

    def long(self, address: int, value: int) -> None:
        struct.pack_into("<Q", self.memory, address - BASE, value)

    def word(self, address: int, value: int) -> None:
        struct.pack_into("<I", self.memory, address - BASE, value)

    def entry(self, address: int) -> int:
        return int(struct.unpack_from("<I", self.memory, address - BASE)[0])

    # ---- pages and tables

    def page(self) -> int:
        """A page that nothing else uses, of zeros."""
        page: int = self._free.pop()
        self.memory[page - BASE : page - BASE + PAGE] = bytes(PAGE)
        return page

    def _table(self, known: dict[int, int], key: int, entry_at: int) -> int:
        if key not in known:
            known[key] = self.page()
            self.long(entry_at, known[key] | 3)
        return known[key]

    def leaf(self, page: int) -> int:
        """Where the monitor's tree has the entry of a physical page."""
        middle = self._table(self._middle, page >> 30, self.tree + (page >> 30) * 8)
        low = self._table(self._tables, page >> 21, middle + (page >> 21 & 511) * 8)
        return low + (page >> 12 & 511) * 8

    def let(self, *pages: int, read_only: bool = False) -> None:
        """Map pages in the monitor's tree."""
        for page in pages:
            self.long(self.leaf(page), page | 0x743 | (0x80 if read_only else 0))

    def keep(self, *pages: int) -> None:
        """Unmap pages in the monitor's tree."""
        for page in pages:
            self.long(self.leaf(page), 0)

    def map(self, iova: int, page: int, rights: int = 7) -> None:
        """Map a page in the driver's tables, which the device may read."""
        at = self.directory + (iova >> 22) * 4
        entry = self.entry(at)
        if not entry:
            table = self.page()
            self.let(table)
            entry = table | 1
            self.word(at, entry)
        self.word((entry & ~0xFFF) + (iova >> 12 & 1023) * 4, page | rights)

    def buffer(self, iova: int, size: int, *, within_tree: bool = True) -> list[int]:
        """Put pages behind [iova, iova + size): those of its first byte to its last."""
        pages = []
        for page in range(iova & -PAGE, iova + size, PAGE):
            pages.append(self.page())
            self.map(page, pages[-1])
            if within_tree:
                self.let(pages[-1])
        return pages

    def fill(self, iova: int, pages: Sequence[int], data: bytes) -> None:
        """Write to a buffer, as whoever owns its pages does."""
        for page, at, size, where in self._pieces(iova, pages, len(data)):
            self.memory[page - BASE + at : page - BASE + at + size] = data[where : where + size]

    def dump(self, iova: int, pages: Sequence[int], size: int) -> bytes:
        """Read a buffer."""
        return b"".join(
            bytes(self.memory[page - BASE + at : page - BASE + at + part])
            for page, at, part, _ in self._pieces(iova, pages, size)
        )

    def snapshot(self) -> dict[int, bytes]:
        """All of RAM as it is, but for pages that nobody touched yet: these are zeros."""
        found, at = {}, 0
        while (start := self._next(at, os.SEEK_DATA)) < RAM:
            at = self._next(start, os.SEEK_HOLE)
            found |= {BASE + page: bytes(self.memory[page : page + PAGE]) for page in range(start, at, PAGE)}
        return found

    def _next(self, at: int, what: int) -> int:
        """Where, from `at` on, RAM has data, or a hole, next."""
        try:
            return self._ram.seek(at, what)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return RAM

    def changed(self, before: dict[int, bytes]) -> set[int]:
        """The pages that are not as in a snapshot, but for registers and the control page."""
        now, zeros = self.snapshot(), bytes(PAGE)
        differ = {page for page in now if now[page] != before.get(page, zeros)}
        registers = range(BASE + self.window_at, BASE + self.window_at + 16 * PAGE, PAGE)
        return differ - {*registers, BASE + self.control_at}

    @staticmethod
    def _pieces(iova: int, pages: Sequence[int], size: int) -> Iterable[tuple[int, int, int, int]]:
        where = 0
        for page in pages:
            at = (iova + where) % PAGE
            part = min(PAGE - at, size - where)
            yield page, at, part, where
            where += part

    # ---- jobs

    def enable_paging(self) -> None:
        self.write(DTE_ADDR, self.directory)
        self.order(1)

    def order(self, command: int) -> None:
        """Have the IOMMU do something, and see it done."""
        self.write(MMU_COMMAND, command)
        self.device.look()
        assert self.read(MMU_COMMAND) == 0

    def start(self, iova: int, commands: Sequence[int], *, pages: Sequence[int] | None = None) -> None:
        """Put a command list at `iova`, into pages of its own unless given, and start it."""
        data = struct.pack(f"<{len(commands)}Q", *commands)
        self.fill(iova, pages if pages is not None else self.buffer(iova, len(data)), data)
        self.write(DATA_ADDR, iova)
        self.write(DATA_AMOUNT, len(commands))
        self.write(OP_EN, 1)

    def run(self, iova: int, commands: Sequence[int]) -> int:
        """Run a command list to its end; return what INT_RAW says of it."""
        self.start(iova, commands)
        self.device.look()
        assert self.read(OP_EN) == 0
        assert self.control(BUSY) == 0
        raw = self.read(INT_RAW)
        self.write(INT_CLEAR, raw)
        self.device.look()
        return raw


def command(kind: int, register: int, value: int) -> int:
    return kind << 48 | value << 16 | register


def operation(
    form: int, m: int, n: int, k: int, *, a: int, b: int, c: int, strides: tuple[int, int, int]
) -> list[int]:
    """The commands of C = A·Bᵀ."""
    values = {0x1000: form, 0x1004: m, 0x1008: n, 0x100C: k, 0x1010: a, 0x1014: strides[0]}
    values |= {0x1018: b, 0x101C: strides[1]}
    commands = [command(0x0201, register, value) for register, value in values.items()]
    commands += [command(0x1001, 0x4000, c), command(0x1001, 0x4004, strides[2])]
    return [*commands, command(0x0081, 0, 1)]


def row_bytes(form: int, k: int) -> int:
    return {INT8: k, FP16: 2 * k, Q8: k // 32 * 34}[form & 0xFF]


# Where the tests' jobs have their lists and matrices, and the usual shape.
LIST, A, B, C = 0x0010_0000, 0x1000_0000, 0x2000_0000, 0x3000_0000
M, N, K = 3, 5, 64


class Interrupted(Device):
    """Does something of the test's own at each look between two bursts."""

    between: Callable[[], None] | None = None

    def attend(self) -> bool:
        if self.between is not None:
            self.between()
        return super().attend()


class Matrices:
    """Operands of known content in buffers of a board, packed, and what their product is."""

    def __init__(self, board: Board, form: int = INT8, m: int = M, n: int = N, k: int = K) -> None:
        self.board, self.size = board, 4 * m * n
        rng, width = random.Random(1), row_bytes(form, k)
        depth = k // 32 if form == Q8 else k
        rows = [[row(form, depth, rng, tame_half) for _ in range(count)] for count in (m, n)]
        self.expected = by_hand(form, *rows)
        self.pages = [board.buffer(at, size) for at, size in ((A, m * width), (B, n * width), (C, self.size))]
        for at, pages, content in zip((A, B), self.pages, rows, strict=False):
            board.fill(at, pages, b"".join(content))
        self.commands = operation(form, m, n, k, a=A, b=B, c=C, strides=(width, width, 4 * n))
        self.reusing = operation(form | REUSE, m, n, k, a=A, b=0, c=C, strides=(width, 0, 4 * n))

    def result(self) -> bytes:
        return self.board.dump(C, self.pages[2], self.size)
