"""A job's list of 64-bit register commands, `operation << 48 | value << 16 | register`, as operations.

The list is hostile: it is decoded whole before anything runs, and it is either a sequence of operations
within the device's limits, or a bad command.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from flexserve.emulator.npu.arithmetic import FORMATS
from flexserve.emulator.npu.translation import Rows
from flexserve.platforms.trustzone.abi import NpuFormat, NpuOperand, NpuTarget

# Where the registers of a target's block begin; each block has 4 KiB of them.
_BLOCKS: dict[int, int] = {
    NpuTarget.PC: 0x0000,
    NpuTarget.CNA: 0x1000,
    NpuTarget.CORE: 0x3000,
    NpuTarget.DPU: 0x4000,
}
_BLOCK_BYTES = 0x1000

MOST_M, MOST_N, MOST_K = 4096, 65536, 65536
_REACH = 1 << 32  # bytes of IOVA
_ELEMENT = 4  # bytes of a result


class BadCommandError(Exception):
    """The list, or an operation in it, is not one that the device can run."""


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """C = A·Bᵀ. With `reuse`, B is what the operation before left on the chip, and `b` is not looked at."""

    format: NpuFormat
    reuse: bool
    depth: int
    a: Rows
    b: Rows
    c: Rows


def decoded(commands: Sequence[int]) -> list[Operation]:
    """Return the operations of a list. Raises BadCommandError."""
    return list(_operations(commands))


def _operations(commands: Sequence[int]) -> Iterator[Operation]:
    registers: collections.Counter[int] = collections.Counter()  # 0 until they are written
    for command in commands:
        kind, value, register = command >> 48, command >> 16 & 0xFFFF_FFFF, command & 0xFFFF
        if kind == NpuTarget.RUN and value == 1 and register == 0:
            yield _operation(registers)
        elif kind in _BLOCKS and 0 <= register - _BLOCKS[kind] < _BLOCK_BYTES:
            registers[register] = value  # those without a meaning have no effect
        else:
            raise BadCommandError


def _operation(registers: Mapping[int, int]) -> Operation:
    of = NpuOperand
    form, m, n, k = (registers[each] for each in (of.FORMAT, of.M, of.N, of.K))
    number, reuse = form & ~NpuFormat.REUSE, bool(form & NpuFormat.REUSE)
    if number not in FORMATS or not (0 < m <= MOST_M and 0 < n <= MOST_N and 0 < k <= MOST_K):
        raise BadCommandError
    arithmetic = FORMATS[number]
    if k % arithmetic.depth_step:
        raise BadCommandError
    width = arithmetic.row_bytes(k)
    a = Rows(registers[of.A], registers[of.A_STRIDE], m, width)
    b = Rows(registers[of.B], registers[of.B_STRIDE], n, width)
    c = Rows(registers[of.C], registers[of.C_STRIDE], m, n * _ELEMENT)
    for rows in (a, c) if reuse else (a, b, c):
        if rows.stride < rows.width or rows.start + (rows.count - 1) * rows.stride + rows.width > _REACH:
            raise BadCommandError
    return Operation(NpuFormat(number), reuse, k, a, b, c)
