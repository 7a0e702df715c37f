"""A job of the NPU as bytes: its commands, and the tables by which it finds our memory.

The NPU sees addresses of its own (IOVA), 32 bits wide. The matrices of a job are mapped there one behind
the other, page by page, in the two-level format of Rockchip's IOMMU. These tables are ours and say where
things are; what the NPU may reach at all the monitor decides, behind them. Commands and tables lie
in secure memory themselves: the `place` of a job.

    place: commands (1 page) | directory (1 page) | tables (1 page for each 4 MiB that are mapped)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from flexserve.errors import InternalError
from flexserve.platforms.linux import mman
from flexserve.platforms.ports import NpuLimits, Product
from flexserve.platforms.trustzone.abi import NpuFormat, NpuOperand, NpuTarget
from flexserve.platforms.trustzone.pool import Run
from flexserve.platforms.trustzone.ram import PAGE
from flexserve.units import MIB, align_up

_BLOCK, _BLOCK_BYTES = 32, 34  # values and bytes of a block of q8_0
_ENTRIES = PAGE // 4
_TABLES = 18
_FIRST = PAGE  # the first IOVA that is used: 0 stays what it is everywhere
_VALID, _READABLE, _WRITABLE = 1, 2, 4

LIMITS = NpuLimits(
    rows=4096,
    columns=65536,
    depth=65536,
    products=32,  # whose commands fit into a page
    reach=64 * MIB,  # leaves two tables for what lies across pages
    place=(2 + _TABLES) * PAGE,
)

Behind = Callable[[int, int], list[Run]]  # of TrustZoneMemory


@dataclasses.dataclass(frozen=True, slots=True)
class JobDescription:
    """What starts a job: `commands` commands at IOVA `list`, translated by `directory` (physical)."""

    list: int
    commands: int
    directory: int


def write(products: Sequence[Product], place: int, behind: Behind) -> JobDescription:
    """Write the description of a job into the memory at `place`.

    `behind` tells the pages behind addresses. Raises InternalError for a job beyond the limits.
    """
    _check(products)
    commands, directory, *tables = _pages(behind(place, LIMITS.place)).tolist()
    space = _AddressSpace(products)
    pages = [_pages(behind(start, stop - start)) for start, stop in space.ranges]
    entries = np.concatenate([np.array([commands], np.uint32), *pages]) | (_VALID | _READABLE | _WRITABLE)
    memory = np.frombuffer(mman.view(place, LIMITS.place), np.uint32).reshape(-1, _ENTRIES)
    used = -(-(len(entries) + _FIRST // PAGE) // _ENTRIES)
    memory[1] = 0
    memory[1, :used] = np.array(tables[:used], np.uint32) | _VALID
    flat = memory[2 : 2 + used].reshape(-1)
    flat[:] = 0
    flat[_FIRST // PAGE : _FIRST // PAGE + len(entries)] = entries
    words = np.array([word for product in products for word in space.commands(product)], np.uint64)
    memory[0, : 2 * len(words)] = words.view(np.uint32)
    return JobDescription(_FIRST, len(words), directory)


class _AddressSpace:
    """The IOVAs of a job: one page of commands, then the matrices' pages, those that touch together."""

    def __init__(self, products: Sequence[Product]) -> None:
        spans = sorted(span for product in products for span in _spans(product))
        self.ranges: list[tuple[int, int]] = []  # whole pages of our addresses
        for start, stop in spans:
            if self.ranges and start <= self.ranges[-1][1]:
                self.ranges[-1] = self.ranges[-1][0], max(stop, self.ranges[-1][1])
            else:
                self.ranges.append((start, stop))
        if sum(stop - start for start, stop in self.ranges) > (_TABLES * _ENTRIES - 2) * PAGE:
            raise InternalError("A job of the NPU names too much memory.")

    def commands(self, product: Product) -> list[int]:
        """Return the commands of one operation."""
        operands = {
            NpuOperand.FORMAT: NpuFormat.Q8_0,
            NpuOperand.M: product.rows,
            NpuOperand.N: product.columns,
            NpuOperand.K: product.depth,
            NpuOperand.A: self._iova(product.a),
            NpuOperand.A_STRIDE: product.a_stride,
            NpuOperand.B: self._iova(product.b),
            NpuOperand.B_STRIDE: product.b_stride,
            NpuOperand.C: self._iova(product.c),
            NpuOperand.C_STRIDE: product.c_stride,
        }
        words = [
            (NpuTarget.DPU if name >= NpuOperand.C else NpuTarget.CNA) << 48 | value << 16 | name
            for name, value in operands.items()
        ]
        return [*words, NpuTarget.RUN << 48 | 1 << 16]

    def _iova(self, address: int) -> int:
        at = _FIRST + PAGE
        for start, stop in self.ranges:
            if start <= address < stop:
                return at + address - start
            at += stop - start
        raise InternalError("A matrix of a job is not where its pages are.")


def _spans(product: Product) -> list[tuple[int, int]]:
    """Return the whole pages of our addresses in which each matrix lies."""
    width = product.depth // _BLOCK * _BLOCK_BYTES
    matrices = (
        (product.a, product.rows, product.a_stride, width),
        (product.b, product.columns, product.b_stride, width),
        (product.c, product.rows, product.c_stride, 4 * product.columns),
    )
    return [
        (start // PAGE * PAGE, align_up(start + (rows - 1) * stride + length, PAGE))
        for start, rows, stride, length in matrices
    ]


def _check(products: Sequence[Product]) -> None:
    fits = 0 < len(products) <= LIMITS.products and all(
        0 < each.rows <= LIMITS.rows
        and 0 < each.columns <= LIMITS.columns
        and 0 < each.depth <= LIMITS.depth
        and each.depth % _BLOCK == 0
        for each in products
    )
    if not fits:
        raise InternalError("A job of the NPU is beyond its limits.")


def _pages(runs: Sequence[Run]) -> NDArray[np.uint32]:
    """Return the physical address of each page."""
    return np.concatenate([np.arange(run.ipa, run.end, PAGE).astype(np.uint32) for run in runs])
