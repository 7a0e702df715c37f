"""A random walk of driver and monitor beside a model of the device that knows only what docs/npu.md says."""

from __future__ import annotations

import random

from boards import (
    BAD,
    BASE,
    BUSY,
    BY_MONITOR,
    DONE,
    FAULT,
    FAULT_ADDR,
    FLUSH,
    FLUSH_DONE,
    IDLE,
    INT_CLEAR,
    INT_RAW,
    MMU_STATUS,
    OP_EN,
    PAGE,
    PAGING,
    READ_FAULT,
    RESET,
    RESET_DONE,
    REUSE,
    TASK_STATUS,
    WRITE_FAULT,
    Board,
    operation,
)
from by_hand import INT8, by_hand
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

# Each IOVA page is a buffer of its own; several may lead to one physical page.
LIST, A, B, C = 0x1000, 0x40_2000, 0x40_3000, 0x80_4000
_DATA = (A, B, C)
M, N, K = 4, 6, 96
_PAGES = 5


class Stopped(Exception):
    pass


class NpuMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.board = Board()
        self.pages = [self.board.page() for _ in range(_PAGES)]
        self.list_page = self.board.page()
        self.board.map(LIST, self.list_page)
        self.board.let(self.list_page)
        self.mapped: dict[int, tuple[int, int]] = {}  # IOVA → page, rights
        self.tree: dict[int, bool] = {}  # page → writable
        self.content = {page: bytes(PAGE) for page in self.pages}
        self.chip: list[bytes] | None = None
        self.flushes = self.resets = 0
        self.power_on()

    def teardown(self) -> None:
        self.board.close()

    def power_on(self) -> None:
        """What the device forgets."""
        self.chip = None
        self.raw = self.finished = self.fault = self.fault_at = 0
        self.paging = False

    # ---- driver

    @rule(
        iova=st.sampled_from(_DATA),
        page=st.integers(0, _PAGES - 1),
        rights=st.sampled_from([7, 7, 7, 3, 5, 0]),
    )
    def map(self, iova: int, page: int, rights: int) -> None:
        self.board.map(iova, self.pages[page], rights)
        self.mapped[iova] = self.pages[page], rights

    @rule(page=st.integers(0, _PAGES - 1), seed=st.integers(0, 99))
    def fill(self, page: int, seed: int) -> None:
        data = random.Random(seed).randbytes(PAGE)
        self.board.fill(0, [self.pages[page]], data)
        self.content[self.pages[page]] = data

    @rule(on=st.booleans())
    def switch_paging(self, on: bool) -> None:
        if on:
            self.board.enable_paging()
        else:
            self.board.order(2)
        self.paging = on

    @rule(bits=st.sampled_from([DONE, READ_FAULT, BAD, 0xFFFF_FFFF]))
    def clear(self, bits: int) -> None:
        self.board.write(INT_CLEAR, bits)
        self.board.device.look()
        self.raw &= ~bits

    @rule()
    def reset_by_driver(self) -> None:
        self.board.order(6)
        self.power_on()

    # ---- monitor

    @rule(page=st.integers(0, _PAGES - 1), writable=st.sampled_from([True, True, False]))
    def let(self, page: int, writable: bool) -> None:
        self.board.let(self.pages[page], read_only=not writable)
        self.tree[self.pages[page]] = writable

    @rule(page=st.integers(0, _PAGES - 1))
    def keep(self, page: int) -> None:
        self.board.keep(self.pages[page])
        self.tree.pop(self.pages[page], None)
        self.flushes += 1
        self.board.set_control(FLUSH, self.flushes)
        self.board.device.look()

    @rule()
    def reset(self) -> None:
        self.resets += 1
        self.board.set_control(RESET, self.resets)
        self.board.device.look()
        self.power_on()

    # ---- jobs

    @rule(reuse=st.booleans(), times=st.integers(1, 2), paging=st.sampled_from([True, True, True, False]))
    def job(self, reuse: bool, times: int, paging: bool) -> None:
        if paging and not self.paging:
            self.switch_paging(True)
        form = INT8 | REUSE * reuse
        commands = operation(form, M, N, K, a=A + 5, b=B + 7, c=C + 9, strides=(K, K, 4 * N)) * times
        self.board.start(LIST, commands, pages=[self.list_page])
        self.fault = self.fault_at = self.finished = 0
        self.raw |= self.outcome(reuse, times)
        self.board.device.look()

    def outcome(self, reuse: bool, times: int) -> int:
        """Run a job on the model; return what INT_RAW says of it."""
        kind = READ_FAULT
        try:
            if not self.paging:
                self.stop(LIST, 0)
            for _ in range(times):
                kind = READ_FAULT
                if reuse and self.chip is None:
                    return BAD
                if not reuse:
                    self.chip = self.rows(B + 7, N)
                assert self.chip is not None
                result = by_hand(INT8, self.rows(A + 5, M), self.chip)
                kind = WRITE_FAULT
                page = self.reach(C, 4, C + 9, write=True)
                old = self.content[page]
                self.content[page] = old[:9] + result + old[9 + len(result) :]
                self.finished += 1
        except Stopped:
            self.chip = None
            return kind
        return DONE

    def rows(self, at: int, count: int) -> list[bytes]:
        content = self.content[self.reach(at & -PAGE, 2, at, write=False)][at % PAGE :]
        return [content[row * K : (row + 1) * K] for row in range(count)]

    def reach(self, iova: int, right: int, at: int, *, write: bool) -> int:
        page, rights = self.mapped.get(iova, (0, 0))
        if not rights & 1 or not rights & right:
            self.stop(at, 0)
        if page not in self.tree or (write and not self.tree[page]):
            self.stop(at, BY_MONITOR)
        return page

    def stop(self, at: int, by: int) -> None:
        self.fault, self.fault_at = FAULT | by, at
        raise Stopped

    # ---- laws

    @invariant()
    def the_registers_are_the_models(self) -> None:
        self.board.device.look()
        board = self.board
        found = [board.read(at) for at in (OP_EN, INT_RAW, TASK_STATUS, MMU_STATUS, FAULT_ADDR)]
        status = self.fault | IDLE | PAGING * self.paging
        assert found == [0, self.raw, self.finished, status, self.fault_at]
        found = [board.control(at) for at in (FLUSH_DONE, RESET_DONE, BUSY)]
        assert found == [self.flushes, self.resets, 0]

    @invariant()
    def every_page_is_as_the_model_has_it(self) -> None:
        for page, content in self.content.items():
            assert bytes(self.board.memory[page - BASE : page - BASE + PAGE]) == content


NpuMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestNpuWalk = NpuMachine.TestCase
