"""The NPU under faults, flushes and resets."""

from __future__ import annotations

import pytest
from boards import (
    BAD,
    BUSY,
    BY_MONITOR,
    DONE,
    FAULT,
    FAULT_ADDR,
    FLUSH,
    FLUSH_DONE,
    IDLE,
    INT_RAW,
    LIST,
    MMU_COMMAND,
    MMU_STATUS,
    PAGE,
    PAGING,
    READ_FAULT,
    RESET,
    RESET_DONE,
    ROOT,
    WRITE_FAULT,
    A,
    B,
    Board,
    C,
    Interrupted,
    Matrices,
    operation,
)
from by_hand import INT8

# ---- faults


def faults(board: Board, commands: list[int]) -> tuple[int, int, int]:
    """What a job that faults says: of itself, where, and whether the monitor stopped it."""
    raw = board.run(LIST, commands)
    status = board.read(MMU_STATUS)
    assert status & (PAGING | FAULT | IDLE) == PAGING | FAULT | IDLE
    return raw, board.read(FAULT_ADDR), status & BY_MONITOR


def test_a_page_that_the_driver_did_not_map_faults(board: Board) -> None:
    matrices = Matrices(board)
    board.map(A, 0, rights=0)
    assert faults(board, matrices.commands) == (READ_FAULT, A, 0)


@pytest.mark.parametrize(("rights", "kind", "at"), [(1 | 4, READ_FAULT, A), (1 | 2, WRITE_FAULT, C)])
def test_the_drivers_rights_are_kept(board: Board, rights: int, kind: int, at: int) -> None:
    matrices = Matrices(board)
    which = {READ_FAULT: 0, WRITE_FAULT: 2}[kind]
    board.map(at, matrices.pages[which][0], rights=rights)
    assert faults(board, matrices.commands) == (kind, at, 0)
    assert matrices.result() == bytes(matrices.size)


@pytest.mark.parametrize(
    ("which", "kind", "at"), [(0, READ_FAULT, A), (1, READ_FAULT, B), (2, WRITE_FAULT, C)]
)
def test_a_page_that_the_monitor_keeps_faults_whatever_the_driver_maps(
    board: Board, which: int, kind: int, at: int
) -> None:
    matrices = Matrices(board)
    board.keep(matrices.pages[which][0])
    assert faults(board, matrices.commands) == (kind, at, BY_MONITOR)
    assert matrices.result() == bytes(matrices.size)


def test_a_page_that_the_monitor_lets_be_read_is_not_written(board: Board) -> None:
    matrices = Matrices(board)
    board.let(*matrices.pages[0], *matrices.pages[2], read_only=True)
    assert faults(board, matrices.commands) == (WRITE_FAULT, C, BY_MONITOR)


def test_the_drivers_own_tables_must_be_in_the_monitors_tree(board: Board) -> None:
    matrices = Matrices(board)
    table = board.entry(board.directory + (A >> 22) * 4) & -PAGE
    board.keep(table)
    assert faults(board, matrices.commands) == (READ_FAULT, A, BY_MONITOR)
    board.let(table)
    board.keep(board.directory)
    assert faults(board, matrices.commands) == (READ_FAULT, LIST, BY_MONITOR)


def test_the_address_of_a_fault_is_the_first_byte_that_was_stopped(board: Board) -> None:
    width, rows = 1000, 9
    start = A + 100
    pages = board.buffer(start, rows * width)
    board.buffer(B, width), board.buffer(C, 4 * rows)
    board.keep(pages[1])
    commands = operation(INT8, rows, 1, width, a=start, b=B, c=C, strides=(width, width, 4))
    assert faults(board, commands) == (READ_FAULT, A + PAGE, BY_MONITOR)
    commands = operation(INT8, 4, 1, 500, a=start, b=B, c=C, strides=(2 * PAGE, 500, 4))
    assert faults(board, commands) == (READ_FAULT, start + 4 * PAGE, 0)  # of the third row


def test_a_burst_that_faults_writes_nothing_and_bursts_before_it_stay_written(board: Board) -> None:
    form, m, n, k = INT8, 1, 65536, 1
    pages = [board.buffer(at, size) for at, size in ((A, k), (B, n * k), (C, 4 * n))]
    for at, which, value in ((A, pages[0], 1), (B, pages[1], 1)):
        board.fill(at, which, bytes([value]) * (n if at == B else 1))
    hidden = len(pages[2]) // 2
    board.keep(pages[2][hidden])
    raw, where, _ = faults(board, operation(form, m, n, k, a=A, b=B, c=C, strides=(k, k, 4 * n)))
    assert (raw, where) == (WRITE_FAULT, C + hidden * PAGE)
    written = [any(board.memory[page - 0x4000_0000 : page - 0x4000_0000 + PAGE]) for page in pages[2]]
    assert written == [index < hidden for index in range(len(written))]


def test_without_paging_nothing_is_reached(board: Board) -> None:
    board.order(2)
    board.start(LIST, Matrices(board).commands)
    board.device.look()
    assert (board.read(INT_RAW), board.read(FAULT_ADDR)) == (READ_FAULT, LIST)
    assert board.read(MMU_STATUS) == FAULT | IDLE


@pytest.mark.parametrize("root", [0, 1, 0x1000, 0xFFFF_FFFF_FFFF_F000, 1 << 63 | 0x4000_0000])
def test_with_a_root_that_is_no_table_nothing_is_reached(board: Board, root: int) -> None:
    matrices = Matrices(board)
    board.control64(ROOT, root)
    assert faults(board, matrices.commands) == (READ_FAULT, LIST, BY_MONITOR)


def test_a_tree_may_have_blocks(board: Board) -> None:
    matrices = Matrices(board)
    level1, level2 = board.page(), board.page()
    board.long(level1 + 8, level2 | 3)
    for region in range(4):
        board.long(level2 + 8 * region, 0x4000_0000 + region * 0x20_0000 | 0x741)
    board.control64(ROOT, level1)
    assert board.run(LIST, matrices.commands) == DONE
    assert matrices.result() == matrices.expected
    board.long(level2, 0x4000_0000 | 0x7C1)  # to be read only: the results may or may not lie in it
    for region in range(1, 4):
        board.long(level2 + 8 * region, 0x4000_0000 + region * 0x20_0000 | 0x7C1)
    assert faults(board, matrices.commands) == (WRITE_FAULT, C, BY_MONITOR)


def test_a_fault_is_over_with_the_next_job(board: Board) -> None:
    matrices = Matrices(board)
    board.keep(*matrices.pages[0])
    assert faults(board, matrices.commands) == (READ_FAULT, A, BY_MONITOR)
    board.let(*matrices.pages[0])
    assert board.run(LIST + PAGE, matrices.commands) == DONE
    assert (board.read(MMU_STATUS), board.read(FAULT_ADDR)) == (PAGING | IDLE, 0)


# ---- the monitor


def test_an_idle_device_acknowledges_flushes_and_resets(board: Board) -> None:
    board.set_control(FLUSH, 7)
    board.device.look()
    assert board.control(FLUSH_DONE) == 7
    board.set_control(RESET, 9)
    board.device.look()
    assert board.control(RESET_DONE) == 9


def test_a_flush_tells_anew_whether_the_device_is_busy(board: Board) -> None:
    assert isinstance(board.device, Interrupted)
    board.set_control(BUSY, 1)
    board.set_control(FLUSH, 1)
    board.device.look()
    assert (board.control(FLUSH_DONE), board.control(BUSY)) == (1, 0)
    seen = []

    def between() -> None:
        seen.append((board.control(FLUSH_DONE), board.control(BUSY)))
        if len(seen) == 3:  # in the job
            board.set_control(BUSY, 0)
            board.set_control(FLUSH, 2)

    board.device.between = between
    assert board.run(LIST, Matrices(board).commands) == DONE
    assert seen[3] == (2, 1)
    assert board.control(BUSY) == 0


def test_an_entry_that_is_not_marked_as_accessed_lets_nothing_through(board: Board) -> None:
    matrices = Matrices(board)
    page = matrices.pages[0][0]
    board.long(board.leaf(page), page | 0x343)
    assert faults(board, matrices.commands) == (READ_FAULT, A, BY_MONITOR)


def test_a_page_that_left_the_tree_in_the_midst_of_a_job_is_not_reached_after_the_flush(board: Board) -> None:
    assert isinstance(board.device, Interrupted)
    matrices = Matrices(board, m=200, n=600, k=32)  # several tiles
    looks, seen = 0, []

    def between() -> None:
        nonlocal looks
        looks += 1
        if board.control(FLUSH_DONE) == 1 and not seen:
            seen.append(board.snapshot())
        if any(matrices.result()) and not board.control(FLUSH):
            assert board.control(BUSY) == 1
            board.keep(*matrices.pages[2])
            board.set_control(FLUSH, 1)

    board.device.between = between
    raw, where, by_monitor = faults(board, matrices.commands)
    assert (raw, by_monitor) == (WRITE_FAULT, BY_MONITOR)
    assert C <= where < C + matrices.size
    assert seen
    assert not board.changed(seen[0]) & set(matrices.pages[2])


def test_a_job_is_heard_of_before_it_looks_at_the_tree_and_until_its_last_access(board: Board) -> None:
    assert isinstance(board.device, Interrupted)
    busy = []
    board.device.between = lambda: busy.append(board.control(BUSY))
    board.run(LIST, Matrices(board).commands)
    assert busy[0] == 0
    assert set(busy[1:-1]) == {1}


@pytest.mark.parametrize("by_driver", [False, True])
@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_a_reset_ends_a_job_and_leaves_nothing(board: Board, by_driver: bool, after: int) -> None:
    assert isinstance(board.device, Interrupted)
    matrices = Matrices(board, m=200, n=600, k=32)
    looks = 0

    def between() -> None:
        nonlocal looks
        looks += 1
        if looks == after + 2:  # the first two are before the job
            if by_driver:
                board.write(MMU_COMMAND, 6)
            else:
                board.set_control(RESET, board.control(RESET_DONE) + 1)

    board.device.between = between
    board.start(LIST, matrices.commands)
    board.device.look()
    board.device.between = None
    assert board.control(BUSY) == 0
    assert board.control(RESET_DONE) == board.control(RESET)
    only = {0: 0x464E5055, 4: 1, MMU_STATUS: IDLE}
    assert all(board.read(at) == only.get(at, 0) for at in range(0, 0x10000, 4))
    before = board.snapshot()
    for _ in range(3):
        board.device.look()
    assert board.changed(before) == set()


@pytest.mark.parametrize("by_driver", [False, True])
def test_the_chip_is_empty_after_a_reset(board: Board, by_driver: bool) -> None:
    matrices = Matrices(board)
    assert board.run(LIST, matrices.commands) == DONE
    if by_driver:
        board.order(6)
    else:
        board.set_control(RESET, 1)
        board.device.look()
    board.enable_paging()
    assert board.run(LIST + PAGE, matrices.reusing) == BAD


def test_the_chip_is_empty_after_a_fault(board: Board) -> None:
    matrices = Matrices(board)
    board.keep(*matrices.pages[2])
    assert faults(board, matrices.commands)[0] == WRITE_FAULT
    board.let(*matrices.pages[2])
    assert board.run(LIST + PAGE, matrices.reusing) == BAD
