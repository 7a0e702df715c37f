"""The NPU as its driver and the monitor see it: registers, jobs, faults, flushes, resets."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from boards import (
    BAD,
    BUSY,
    BY_MONITOR,
    DATA_ADDR,
    DATA_AMOUNT,
    DMA_BASE,
    DONE,
    DTE_ADDR,
    FAULT,
    FAULT_ADDR,
    FLUSH,
    FLUSH_DONE,
    FP16,
    IDLE,
    INT8,
    INT_CLEAR,
    INT_MASK,
    INT_RAW,
    INT_STATUS,
    MMU_COMMAND,
    MMU_STATUS,
    OP_EN,
    PAGE,
    PAGING,
    Q8,
    READ_FAULT,
    RESET,
    RESET_DONE,
    REUSE,
    ROOT,
    TASK_CON,
    TASK_STATUS,
    WRITE_FAULT,
    Board,
    command,
    operation,
    row_bytes,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_npu_arithmetic import by_hand, row, tame_half

from flexserve.platforms.trustzone.npu.device import Device

LIST, A, B, C = 0x0010_0000, 0x1000_0000, 0x2000_0000, 0x3000_0000
M, N, K = 3, 5, 64


class Interrupted(Device):
    """Does something of the test's own at each look between two bursts."""

    between: Callable[[], None] | None = None

    def attend(self) -> bool:
        if self.between is not None:
            self.between()
        return super().attend()


@pytest.fixture
def board() -> Iterator[Board]:
    it = Board(device=Interrupted)
    it.enable_paging()
    yield it
    it.close()


class Matrices:
    """Operands of known content in buffers of a board, packed, and what their product is."""

    def __init__(
        self, board: Board, form: int = INT8, m: int = M, n: int = N, k: int = K, seed: int = 1
    ) -> None:
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


# ---- registers


def test_the_device_says_who_it_is(board: Board) -> None:
    assert (board.read(0), board.read(4)) == (0x464E5055, 1)


def test_what_only_the_device_writes_is_said_again_when_it_is_overwritten(board: Board) -> None:
    for register in (0, 4, INT_RAW, INT_STATUS, TASK_STATUS, MMU_STATUS, FAULT_ADDR):
        before = board.read(register)
        board.write(register, ~before & 0xFFFF_FFFF)
        board.device.look()
        assert board.read(register) == before


def test_interrupts_stay_until_they_are_cleared_and_show_through_the_mask(board: Board) -> None:
    board.start(LIST, [0xFFFF << 48])
    board.device.look()
    assert (board.read(INT_RAW), board.read(INT_STATUS)) == (BAD, 0)
    board.write(INT_MASK, BAD | DONE)
    board.device.look()
    assert board.read(INT_STATUS) == BAD
    board.write(INT_CLEAR, DONE)
    board.device.look()
    assert (board.read(INT_RAW), board.read(INT_CLEAR)) == (BAD, 0)
    board.write(INT_CLEAR, BAD)
    board.device.look()
    assert (board.read(INT_RAW), board.read(INT_STATUS)) == (0, 0)


class Late(Device):
    """Has a driver that writes right after the first look, which so sees OP_EN and nothing before it."""

    driver: Callable[[], None] | None = None

    def attend(self) -> bool:
        happened = super().attend()
        if self.driver is not None:
            driver, self.driver = self.driver, None
            driver()
        return happened


def test_what_was_written_before_the_start_is_heard_before_the_job() -> None:
    board = Board(device=Late)
    assert isinstance(board.device, Late)

    def driver() -> None:
        board.write(INT_CLEAR, 0xFFFF_FFFF)
        board.write(DATA_AMOUNT, 0)
        board.write(OP_EN, 1)

    board.device.driver = driver
    board.device.look()
    board.device.look()
    assert board.read(INT_RAW) == BAD
    board.close()


def test_paging_goes_on_and_off_and_not_on_without_a_directory(board: Board) -> None:
    assert board.read(MMU_STATUS) == PAGING | IDLE
    board.order(2)
    assert board.read(MMU_STATUS) == IDLE
    board.write(DTE_ADDR, 0)
    board.order(1)
    assert board.read(MMU_STATUS) == IDLE


def test_an_order_that_means_nothing_does_nothing(board: Board) -> None:
    for order in (3, 4, 5, 7, 1 << 31):
        board.order(order)
        assert board.read(MMU_STATUS) == PAGING | IDLE


# ---- jobs


@pytest.mark.parametrize("form", [INT8, FP16, Q8])
def test_a_job_computes(board: Board, form: int) -> None:
    matrices = Matrices(board, form)
    assert board.run(LIST, matrices.commands) == DONE
    assert matrices.result() == matrices.expected
    assert board.read(TASK_STATUS) == 1


def test_a_job_has_many_operations_and_registers_keep_their_values_between_them(board: Board) -> None:
    matrices = Matrices(board)
    other = board.buffer(C + 0x10000, matrices.size)
    again = [command(0x1001, 0x4000, C + 0x10000), command(0x0081, 0, 1)]
    assert board.run(LIST, [*matrices.commands, *again]) == DONE
    assert matrices.result() == board.dump(C, other, matrices.size) == matrices.expected
    assert board.read(TASK_STATUS) == 2


def test_a_job_does_not_see_the_values_of_the_job_before(board: Board) -> None:
    assert board.run(LIST, Matrices(board).commands) == DONE
    assert board.run(LIST + PAGE, [command(0x0081, 0, 1)]) == BAD


def test_the_list_lies_at_the_sum_of_two_registers_and_may_cross_pages(board: Board) -> None:
    matrices = Matrices(board)
    board.write(DMA_BASE, LIST)
    board.start(LIST + PAGE - 24, matrices.commands)
    board.write(DATA_ADDR, PAGE - 24)
    board.device.look()
    assert board.read(INT_RAW) == DONE
    assert matrices.result() == matrices.expected


def test_the_drivers_tag_is_left_alone(board: Board) -> None:
    board.write(TASK_CON, 0x1234)
    board.run(LIST, Matrices(board).commands)
    assert board.read(TASK_CON) == 0x1234


def test_b_is_taken_from_the_chip_where_it_was_left(board: Board) -> None:
    matrices = Matrices(board, Q8)
    assert board.run(LIST, matrices.commands) == DONE
    board.fill(C, matrices.pages[2], bytes(matrices.size))
    board.keep(*matrices.pages[1])  # so that it cannot come from memory
    assert board.run(LIST + PAGE, matrices.reusing) == DONE
    assert matrices.result() == matrices.expected


def test_what_is_too_large_for_the_chip_is_not_kept(board: Board) -> None:
    form, n, k = INT8, 17, 65536
    pages = [board.buffer(at, size) for at, size in ((A, k), (B, n * k), (C, 4 * n))]
    assert board.run(LIST, operation(form, 1, 16, k, a=A, b=B, c=C, strides=(k, k, 4 * n))) == DONE
    assert board.run(LIST, operation(form | REUSE, 1, 16, k, a=A, b=0, c=C, strides=(k, 0, 4 * n))) == DONE
    assert board.run(LIST, operation(form, 1, n, k, a=A, b=B, c=C, strides=(k, k, 4 * n))) == DONE
    assert board.run(LIST, operation(form | REUSE, 1, n, k, a=A, b=0, c=C, strides=(k, 0, 4 * n))) == BAD
    assert pages


@pytest.mark.parametrize("other", [{"n": N - 1}, {"k": K - 32}, {"form": FP16}])
def test_what_is_on_the_chip_is_of_use_only_as_what_it_is(board: Board, other: dict[str, int]) -> None:
    matrices = Matrices(board)
    assert board.run(LIST, matrices.commands) == DONE
    shape = {"form": INT8, "m": M, "n": N, "k": K, **other}
    shape["form"] |= REUSE
    reusing = operation(**shape, a=A, b=0, c=C, strides=(2 * K, 0, 4 * N))
    assert board.run(LIST, reusing) == BAD


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from([INT8, FP16, Q8]),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 80)),
    places=st.tuples(*[st.integers(0, 2 * PAGE)] * 3),
    slack=st.tuples(*[st.integers(0, PAGE + 3)] * 3),
    seed=st.integers(0, 1 << 20),
)
def test_matrices_of_any_shape_lie_anywhere_and_nothing_else_is_written(
    form: int,
    shape: tuple[int, int, int],
    places: tuple[int, int, int],
    slack: tuple[int, int, int],
    seed: int,
) -> None:
    m, n, k = shape
    k = 32 * (k // 32 + 1) if form == Q8 else k
    rng, width = random.Random(seed), row_bytes(form, k)
    board = Board(seed)
    board.enable_paging()
    at = [base + place for base, place in zip((A, B, C), places, strict=True)]
    strides = (width + slack[0], width + slack[1], 4 * n + slack[2])
    rows = [[row(form, k // 32 if form == Q8 else k, rng, tame_half) for _ in range(c)] for c in (m, n)]
    images = [
        bytearray(rng.randbytes((c - 1) * s + w))
        for c, s, w in zip((m, n, m), strides, (width, width, 4 * n), strict=True)
    ]
    for image, content, stride in zip(images, rows, strides, strict=False):
        for index, data in enumerate(content):
            image[index * stride : index * stride + width] = data
    pages = []
    for start, image in zip(at, images, strict=True):
        pages.append(board.buffer(start, len(image)))
        board.fill(start, pages[-1], bytes(image))
    board.start(LIST, operation(form, m, n, k, a=at[0], b=at[1], c=at[2], strides=strides))
    before, original = board.snapshot(), bytes(images[2])
    board.device.look()
    assert board.read(INT_RAW) == DONE
    result, size = by_hand(form, *rows), 4 * n
    for index in range(m):
        images[2][index * strides[2] : index * strides[2] + size] = result[index * size : (index + 1) * size]
    assert board.dump(at[2], pages[2], len(images[2])) == bytes(images[2])
    board.fill(at[2], pages[2], original)
    assert board.changed(before) == set()
    board.close()


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
