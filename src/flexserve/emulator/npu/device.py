"""The device: looks at its registers, runs jobs, and answers the monitor between two bursts.

One thread does all that reaches memory or registers, so at each moment between two bursts nothing is
outstanding. The arithmetic runs on other threads, on copies, and a job waits for it in short naps, in
each of which the monitor is heard.
"""

from __future__ import annotations

import collections
import dataclasses
import struct
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NoReturn

import numpy as np

from flexserve.emulator.npu import commands
from flexserve.emulator.npu.arithmetic import FORMATS, Bytes, Format, Result
from flexserve.emulator.npu.commands import BadCommandError, Operation
from flexserve.emulator.npu.registers import Control, Window, fence
from flexserve.emulator.npu.translation import Context, DmaError, Port, Rows
from flexserve.platforms.trustzone import abi, layout
from flexserve.platforms.trustzone.abi import (
    NpuFormat,
    NpuInterrupt,
    NpuMmuCommand,
    NpuMmuStatus,
    NpuRegister,
)
from flexserve.platforms.trustzone.ram import PAGE

CHIP_BYTES = 1 << 20  # of the on-chip buffer
_A_BYTES, _B_BYTES = 32 << 20, 8 << 20  # of prepared operands, so that hostile sizes stay small here
_A_ROWS, _B_ROWS = 512, 256

_PAGING, _FAULT, _IDLE, _MONITOR = (  # plain numbers: those of enum.IntFlag are slow
    int(bit) for bit in (NpuMmuStatus.PAGING, NpuMmuStatus.FAULT, NpuMmuStatus.IDLE, NpuMmuStatus.MONITOR)
)

_NAP = 20e-6  # seconds between two looks while something is computed
_EAGER, _LAZY = 20e-6, 1e-3  # seconds between two looks, soon after something happened and later
_SOON = 0.1  # seconds


class _Reset(Exception):  # noqa: N818
    """The job is to end at once, and everything with it."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Kept:
    """The on-chip buffer: all rows of a B."""

    format: NpuFormat
    depth: int
    rows: Bytes


class Device:
    """The NPU on `memory`, all of the machine's RAM, which begins at physical address `base`.

    `threads` compute. Nothing that memory or registers contain makes a method raise.
    """

    def __init__(self, memory: memoryview, base: int, *, threads: int) -> None:
        window, control = layout.npu_window_offset(len(memory)), layout.npu_control_offset(len(memory))
        self._window = Window(memory[window : window + abi.NPU_WINDOW_BYTES])
        self._control = Control(memory[control : control + PAGE])
        self._port = Port(memory, base)
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads)
        self._computing: list[Future[Any]] = []
        self._busy = False
        self._forget()

    def _forget(self) -> None:
        """Be as after power-on."""
        self._kept: _Kept | None = None
        self._paging = False
        self._raw = 0  # of NpuInterrupt
        self._fault = self._fault_address = 0  # of NpuMmuStatus, and an IOVA
        self._finished = 0  # operations of this job
        self._working = False

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def serve(self) -> NoReturn:
        """Look for ever: often while things happen, else a thousand times a second."""
        last = time.monotonic()
        while True:
            if self.look():
                last = time.monotonic()
            time.sleep(_EAGER if time.monotonic() - last < _SOON else _LAZY)

    def look(self) -> bool:
        """Do what is asked for, a whole job included; return whether there was anything."""
        try:
            happened = self.attend()
            if self._window[NpuRegister.OP_EN] & 1:
                self._job()
                happened = True
        except _Reset:
            self._reset()
            happened = True
        return happened

    # ---- what is heard at any time

    def attend(self) -> bool:
        """Hear the monitor and the driver, between two bursts; return whether they said something.

        Raises _Reset.
        """
        happened = self._acknowledge()
        control, window = self._control, self._window
        command = window[NpuRegister.MMU_COMMAND]
        if control.reset != control.reset_done or command == NpuMmuCommand.RESET:
            raise _Reset
        if command:
            if command in (NpuMmuCommand.ENABLE, NpuMmuCommand.DISABLE):
                # Without a directory, the driver and a reset were at the registers at the same time.
                self._paging = command == NpuMmuCommand.ENABLE and window[NpuRegister.MMU_DTE_ADDR] != 0
            self._show()  # before the command is over
            window[NpuRegister.MMU_COMMAND] = 0
            happened = True
        cleared = window[NpuRegister.INT_CLEAR]
        if cleared:
            self._raw &= ~cleared
            window[NpuRegister.INT_CLEAR] = 0
            happened = True
        self._show()
        return happened

    def _acknowledge(self) -> bool:
        """Tell the monitor that no access of before its last change is outstanding.

        And whether we are busy, since anybody could write that while protection was off.
        """
        wanted = self._control.flush
        if wanted == self._control.flush_done:
            return False
        self._control.say_busy(self._busy)
        fence()
        self._control.flush_done = wanted
        fence()
        return True

    def _show(self) -> None:
        """Let the registers that only the device writes say what is."""
        status = self._fault | _PAGING * self._paging | _IDLE * (not self._working)
        window = self._window
        window.show(NpuRegister.VERSION, abi.NPU_VERSION)
        window.show(NpuRegister.VERSION_NUM, abi.NPU_VERSION_NUM)
        window.show(NpuRegister.TASK_STATUS, self._finished)
        window.show(NpuRegister.MMU_STATUS, status)
        window.show(NpuRegister.MMU_PAGE_FAULT_ADDR, self._fault_address)
        window.show(NpuRegister.INT_RAW, self._raw)
        window.show(NpuRegister.INT_STATUS, self._raw & window[NpuRegister.INT_MASK])

    def _reset(self) -> None:
        """Forget everything, then say so: to the driver by its command's end, to the monitor by the count."""
        wanted = self._control.reset
        self._forget()
        self._window.clear(keep=NpuRegister.MMU_COMMAND)
        self._show()
        fence()
        self._window[NpuRegister.MMU_COMMAND] = 0
        self._control.reset_done = wanted

    # ---- a job

    def _job(self) -> None:
        """Run the job in the registers. Raises _Reset, with no access outstanding and nothing computing."""
        self._working, self._finished = True, 0
        self._fault = self._fault_address = 0
        self._become(busy=True)
        fence()  # whoever changes a table and then sees us idle is sure that we walk it as it is now
        try:
            self.attend()  # to what was written before OP_EN, and not yet seen
            outcome = self._outcome()
        finally:
            for future in self._computing:
                future.cancel()
            while wait(self._computing, _NAP).not_done:
                self._acknowledge()
            self._computing.clear()
            fence()
            self._become(busy=False)
        self._working = False
        self._raw |= int(outcome)
        self._show()
        fence()
        self._window[NpuRegister.OP_EN] = 0

    def _become(self, *, busy: bool) -> None:
        self._busy = busy
        self._control.say_busy(busy)

    def _outcome(self) -> NpuInterrupt:
        try:
            for operation in self._operations():
                self._operate(operation)
                self._finished += 1
        except BadCommandError:
            return NpuInterrupt.BAD_COMMAND
        except DmaError as fault:
            self._kept = None
            self._fault = _FAULT | _MONITOR * fault.by_monitor
            self._fault_address = fault.iova
            return NpuInterrupt.WRITE_FAULT if fault.write else NpuInterrupt.READ_FAULT
        return NpuInterrupt.DONE

    def _operations(self) -> list[Operation]:
        amount, base = self._window[NpuRegister.DATA_AMOUNT], self._window[NpuRegister.DMA_BASE]
        start = self._window[NpuRegister.DATA_ADDR] + base
        if not 0 < amount <= abi.NPU_COMMANDS_MAX or base % PAGE or start + 8 * amount > 1 << 32:
            raise BadCommandError
        data = self._read(Rows(start, 8 * amount, 1, 8 * amount))
        return commands.decoded(struct.unpack(f"<{amount}Q", data.tobytes()))

    def _operate(self, operation: Operation) -> None:
        """Run an operation, tile by tile: A's rows are read once, B's for each tile of A's."""
        arithmetic = FORMATS[operation.format]
        on_chip = self._on_chip(operation)
        per_row = operation.depth * arithmetic.widening
        for row, height in _cut(operation.a.count, min(_A_ROWS, _A_BYTES // per_row)):
            a = self._compute(arithmetic.prepare, self._read(operation.a.part(row, height)))
            waiting: collections.deque[tuple[Rows, Future[Result]]] = collections.deque()
            for column, width in _cut(operation.b.count, min(_B_ROWS, _B_BYTES // per_row)):
                if on_chip is None:
                    b = self._read(operation.b.part(column, width))
                else:
                    b = on_chip[column : column + width]
                c = operation.c.part(row, height)
                target = Rows(c.start + 4 * column, c.stride, height, 4 * width)
                waiting.append((target, self._compute(_product, arithmetic, a, b)))
                while len(waiting) > self._threads:
                    self._store(*waiting.popleft())
            while waiting:
                self._store(*waiting.popleft())

    def _on_chip(self, operation: Operation) -> Bytes | None:
        """Return all of B where the on-chip buffer has it, or has room for it. Raises BadCommandError."""
        kept = self._kept
        if operation.reuse:
            wanted = operation.format, operation.depth, operation.b.count
            if kept is None or wanted != (kept.format, kept.depth, len(kept.rows)):
                raise BadCommandError
            return kept.rows
        self._kept = None
        if operation.b.count * operation.b.width > CHIP_BYTES:
            return None
        rows = self._read(operation.b)
        self._kept = _Kept(operation.format, operation.depth, rows)
        return rows

    # ---- its accesses, and its waits

    def _compute(self, function: Any, *arguments: Any) -> Future[Any]:
        self._computing = [future for future in self._computing if not future.done()]
        future = self._pool.submit(function, *arguments)
        self._computing.append(future)
        return future

    def _read(self, rows: Rows) -> Bytes:
        """Return rows, (count, width). Raises DmaError and _Reset."""
        result = np.empty((rows.count, rows.width), np.uint8)
        data = result.reshape(-1).data
        for at, burst in rows.bursts():
            self.attend()
            self._port.read(self._context(), burst, data[at:])
        return result

    def _store(self, target: Rows, product: Future[Result]) -> None:
        """Wait for a product and write it. Raises DmaError and _Reset."""
        while not product.done():
            time.sleep(_NAP)
            self.attend()
        data = product.result().reshape(-1).view(np.uint8).data
        for at, burst in target.bursts():
            self.attend()
            self._port.write(self._context(), burst, data[at:])

    def _context(self) -> Context:
        directory = self._window[NpuRegister.MMU_DTE_ADDR] if self._paging else None
        return Context(self._control.root, directory)


def _cut(whole: int, most: int) -> Iterator[tuple[int, int]]:
    """Cut `whole` into pieces of at most `most` (at least one): where each begins, and its size."""
    step = max(1, most)
    for at in range(0, whole, step):
        yield at, min(step, whole - at)


def _product(arithmetic: Format, a: Future[Any], b: Bytes) -> Result:
    return arithmetic.product(a.result(), arithmetic.prepare(b))
