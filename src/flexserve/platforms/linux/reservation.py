"""Addresses without memory behind them: what arenas are made of, and go back to."""

from __future__ import annotations

from flexserve.errors import NormalWorldError
from flexserve.platforms.linux import mman
from flexserve.units import align_up, format_size

_NOTHING = mman.MAP_PRIVATE | mman.MAP_ANONYMOUS | mman.MAP_NORESERVE


def reserve(size: int, alignment: int) -> int:
    """Reserve `size` bytes of addresses on a multiple of `alignment`, and return where.

    Raises NormalWorldError when the address space is refused.
    """
    wanted = size + alignment  # room to align: mmap only promises pages
    try:
        raw = mman.mmap(0, wanted, mman.PROT_NONE, _NOTHING)
    except OSError as error:
        raise NormalWorldError(
            f"The OS refused {format_size(size)} of address space ({error.strerror}).",
            hint="Raise RLIMIT_AS, or load a smaller model.",
        ) from error
    base = align_up(raw, alignment)
    if base > raw:
        mman.munmap(raw, base - raw)
    if base + size < raw + wanted:
        mman.munmap(base + size, raw + wanted - base - size)
    return base


def put_back(address: int, length: int) -> None:
    """Take whatever is mapped away from part of a reservation, which it is again then.

    One call for a whole run: the kernel walks it once. Raises NormalWorldError when it is refused.
    """
    try:
        mman.mmap(address, length, mman.PROT_NONE, _NOTHING | mman.MAP_FIXED)
    except OSError as error:
        raise NormalWorldError(
            f"The OS would not take {format_size(length)} back ({error.strerror}).",
            hint="Raise vm.max_map_count.",
        ) from error
