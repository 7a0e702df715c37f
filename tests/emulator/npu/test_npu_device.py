"""The NPU as its driver sees it: registers and jobs."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from boards import (
    BAD,
    DATA_ADDR,
    DATA_AMOUNT,
    DMA_BASE,
    DONE,
    DTE_ADDR,
    FAULT_ADDR,
    IDLE,
    INT_CLEAR,
    INT_MASK,
    INT_RAW,
    INT_STATUS,
    LIST,
    MMU_STATUS,
    OP_EN,
    PAGE,
    PAGING,
    REUSE,
    TASK_CON,
    TASK_STATUS,
    A,
    B,
    Board,
    C,
    K,
    M,
    Matrices,
    N,
    command,
    operation,
    row_bytes,
)
from by_hand import FP16, INT8, Q8, by_hand, row, tame_half
from hypothesis import given, settings
from hypothesis import strategies as st

from flexserve.emulator.npu.device import Device

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
