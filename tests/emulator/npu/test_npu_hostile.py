"""Whatever registers, commands and tables say: the NPU runs or reports, and stays within the monitor's tree.

The oracle walks the tree page by page, and knows nothing of jobs. What may not be written must be as before;
what may not be read must not matter: the same job on a RAM with other secrets has the same outcome.
"""

from __future__ import annotations

import random
import struct

import pytest
from boards import (
    BASE,
    BUSY,
    MMU_COMMAND,
    MMU_STATUS,
    OP_EN,
    PAGE,
    RAM,
    ROOT,
    Board,
    command,
    operation,
    row_bytes,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

LIST, A, B, C = 0x0010_0000, 0x0020_0000, 0x0030_0000, 0x0040_0000
_POOL = 24  # pages that tables may lead to


def reachable(board: Board, root: int) -> tuple[set[int], set[int], set[int]]:
    """The pages that the tree lets be read and written, and those that it consists of."""
    readable, writable = set(), set()
    seen = set()

    def walk(table: int, level: int) -> None:
        if table % PAGE or not BASE <= table < BASE + RAM or (table, level) in seen:
            return
        seen.add((table, level))
        slots = 4 if level == 1 else 512  # addresses have 32 bits
        for (entry,) in struct.iter_unpack("<Q", board.memory[table - BASE :][: 8 * slots]):
            target = entry & 0xFFFF_FFFF_F000
            if level < 3 and entry & 3 == 3:
                walk(target, level + 1)
            elif entry & 3 == (3 if level == 3 else 1) and entry & 1 << 10:
                size = {1: 1 << 30, 2: 1 << 21, 3: PAGE}[level]
                first = target & -size
                pages = range(max(first, BASE), min(first + size, BASE + RAM), PAGE)
                readable.update(pages)
                if not entry & 1 << 7:
                    writable.update(pages)

    walk(root, 1)
    return readable, writable, {table for table, _ in seen}


class Hostile(Board):
    """A board whose contents follow from a seed, but for secrets outside of the tree."""

    def __init__(self, seed: int, secret: int) -> None:
        super().__init__()
        self.rng = random.Random(seed)
        self.enable_paging()
        self.pool = [self.page() for _ in range(_POOL)]
        for page in self.pool:
            self.memory[page - BASE : page - BASE + PAGE] = self.rng.randbytes(PAGE)
        odd = self.rng.random() < 0.5
        for iova in (LIST, A, B, C):
            for at in range(iova, iova + 32 * PAGE, PAGE):
                rights = self.rng.choice([7] * 60 + [3, 5, 1, 0]) if odd else 7
                self.map(at, self.rng.choice(self.pool), rights)
        for page in self.pool[: _POOL - self.rng.choice([0] * 6 + [1, 8])]:
            self.let(page, read_only=odd and self.rng.random() < 0.1)
        for _ in range(self.rng.choice([0] * 4 + [1, 3])):
            self.corrupt()
        self.root = self.rng.choice(
            [self.tree] * 20 + [0, self.rng.getrandbits(64), self.rng.choice(self.pool)]
        )
        self.readable, self.writable, self.tables = reachable(self, self.root)
        for page in set(self.pool) - self.readable - self.tables:
            fill = random.Random(secret * page).randbytes(PAGE)
            self.memory[page - BASE : page - BASE + PAGE] = fill

    def corrupt(self) -> None:
        """Write an entry of the driver's or of the monitor's that could be anything."""
        target = (
            self.rng.choice([*self.pool, self.directory, BASE + RAM, 0, self.rng.getrandbits(40)]) & -PAGE
        )
        if self.rng.random() < 0.5:
            slot = self.rng.choice([0, 0, 1, self.rng.randrange(1024)])
            self.word(self.directory + 4 * slot, (target | self.rng.getrandbits(3)) & 0xFFFF_FFFF)
        else:
            at = self.leaf(self.rng.choice(self.pool))
            self.long(at if self.rng.random() < 0.7 else self.tree + 8, target | self.rng.getrandbits(12))

    def some_commands(self) -> list[int]:
        """A list that is nearly right, or anything."""
        rng = self.rng
        form, m, n = (
            rng.choice([1, 2, 3] * 5 + [0x101, 0x103, 0, 7]),
            rng.choice([1, 5, 70]),
            rng.choice([1, 9, 300]),
        )
        k = rng.choice([32, 64, 320, 31])
        width = row_bytes(form, k) if form & 0xFF in (1, 2, 3) else k
        strides = [max(0, each + rng.choice([0] * 20 + [1, 3000, -1])) for each in (width, width, 4 * n)]
        commands = operation(form, m, n, k, a=A, b=B, c=C, strides=(strides[0], strides[1], strides[2]))
        for _ in range(rng.choice([0] * 6 + [1, 4])):
            kind = rng.choice([0x0101, 0x0201, 0x0801, 0x1001, 0x0081])
            wild = command(kind, rng.getrandbits(16), rng.getrandbits(32))
            extreme = command(0x0201, 0x1000 + 4 * rng.randrange(8), rng.choice([0, 1, 1 << 31, 0xFFFF_FFFF]))
            commands[rng.randrange(len(commands))] = rng.choice([rng.getrandbits(64), wild, extreme])
        return commands * rng.choice([1, 1, 2])

    def run_anything(self) -> None:
        """Start a job with anything in the registers."""
        rng = self.rng
        self.start(LIST, self.some_commands(), pages=[self._behind(LIST), self._behind(LIST + PAGE)])
        for _ in range(rng.choice([0] * 4 + [1, 3])):
            at = rng.choice([0x10, 0x14, 0x20, 0x24, 0x30, 0x34, 0x9000, 0x9008, 4 * rng.randrange(0x4000)])
            self.write(at, rng.choice([0, 1, 2, 4, 8, rng.getrandbits(12), rng.getrandbits(32)]))
        self.control64(ROOT, self.root)
        self.write(OP_EN, 1)

    def _behind(self, iova: int) -> int:
        table = self.entry(self.directory + (iova >> 22) * 4) & -PAGE
        page = self.entry(table + (iova >> 12 & 1023) * 4) & -PAGE if BASE <= table < BASE + RAM else 0
        return page if page in self.pool else self.pool[0]


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 1 << 40))
def test_hostile_jobs_end_and_reach_no_page_that_the_tree_lacks(seed: int) -> None:
    outcomes = []
    for secret in (1, 2):
        board = Hostile(seed, secret)
        assume(not board.tables & board.writable)  # the monitor's tree is never in itself
        board.run_anything()
        before = board.snapshot()
        board.device.look()
        board.close()
        assert board.control(BUSY) == 0
        assert board.read(OP_EN) == 0
        assert board.read(MMU_COMMAND) == 0
        assert board.changed(before) <= board.writable
        registers = [board.read(at) for at in (0x2C, 0x3C, MMU_STATUS, 0x900C)]
        contents = {page: bytes(board.memory[page - BASE : page - BASE + PAGE]) for page in board.readable}
        outcomes.append((registers, contents))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("amount", [0, 4097, 0xFFFF_FFFF])
def test_a_list_is_neither_empty_nor_longer_than_the_device_takes(amount: int) -> None:
    board = Board()
    board.enable_paging()
    board.write(0x14, amount)
    board.write(OP_EN, 1)
    board.device.look()
    assert board.read(0x2C) == 1 << 6
    board.close()


_GOOD = {"form": 1, "m": 4, "n": 4, "k": 64, "a": A, "b": B, "c": C, "strides": (128, 128, 128)}


@pytest.mark.parametrize(
    "bad",
    [
        {"form": 0},
        {"form": 4},
        {"form": 1 << 9 | 1},
        {"m": 0},
        {"m": 4097},
        {"n": 0},
        {"n": 65537, "strides": (128, 128, 1 << 20)},
        {"k": 0},
        {"k": 65537, "strides": (1 << 17, 1 << 17, 128)},
        {"form": 3, "k": 33},
        {"strides": (63, 128, 128)},
        {"strides": (128, 63, 128)},
        {"strides": (128, 128, 15)},
        {"a": 0xFFFF_FF00},
        {"m": 1, "a": 0xFFFF_FFC1},
        {"b": 0xFFFF_FF00},
        {"c": 0xFFFF_FF00},
        {"strides": (1 << 31, 128, 128)},
    ],
)
def test_an_operation_beyond_the_limits_is_a_bad_command_and_none_of_its_list_runs(
    bad: dict[str, object],
) -> None:
    board = Board()
    board.enable_paging()
    for at in (A, B, C):
        board.buffer(at, 4 * PAGE)
    good = operation(**_GOOD)  # type: ignore[arg-type]
    assert board.run(LIST, good) == 1
    assert board.run(LIST + PAGE, good + operation(**{**_GOOD, **bad})) == 1 << 6  # type: ignore[arg-type]
    assert board.read(0x3C) == 0
    board.close()


_MEANINGLESS = [
    0,
    1 << 48,
    command(0x0081, 0, 0),
    command(0x0081, 0, 2),
    command(0x0081, 8, 1),
    command(0x0201, 0x4000, 1),
    command(0x1001, 0x1000, 1),
    0xFFFF_FFFF_FFFF_FFFF,
]


@pytest.mark.parametrize("word", _MEANINGLESS)
def test_a_command_that_means_nothing_is_a_bad_command(word: int) -> None:
    board = Board()
    board.enable_paging()
    for at in (A, B, C):
        board.buffer(at, 4 * PAGE)
    *setting_up, run = operation(**_GOOD)  # type: ignore[arg-type]
    assert board.run(LIST, [*setting_up, word, run]) == 1 << 6
    board.close()


def test_registers_without_a_meaning_have_no_effect() -> None:
    board = Board()
    board.enable_paging()
    for at in (A, B, C):
        board.buffer(at, 4 * PAGE)
    others = [command(0x0101, 0x0FFC, 1), command(0x0201, 0x1FFC, 2), command(0x0801, 0x3000, 3)]
    assert board.run(LIST, others + operation(**_GOOD)) == 1  # type: ignore[arg-type]
    board.close()
