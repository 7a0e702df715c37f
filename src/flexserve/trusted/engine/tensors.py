"""What llama.cpp has in its memory, as arrays: many tensor structs at once, or floats."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flexserve.trusted.engine import abi

_FIELDS = {
    "type": "<i4",
    "ne": ("<i8", 4),
    "nb": ("<u8", 4),
    "op": "<i4",
    "src": ("<u8", abi.MAX_SRC),
    "data": "<u8",
    "extra": "<u8",
}
_DTYPE = np.dtype(
    {
        "names": list(_FIELDS),
        "formats": list(_FIELDS.values()),
        "offsets": [getattr(abi.Tensor, name).offset for name in _FIELDS],
        "itemsize": ctypes.sizeof(abi.Tensor),
    }
)


def read(pointers: Sequence[int] | ctypes.Array[ctypes.c_uint64]) -> NDArray[np.void]:
    """Return the tensor structs at `pointers` as one structured array (copied)."""
    size = ctypes.sizeof(abi.Tensor)
    return np.frombuffer(b"".join([ctypes.string_at(p, size) for p in pointers]), dtype=_DTYPE)


def floats_at(address: int, count: int) -> NDArray[np.float32]:
    """Return a view of `count` floats at `address`. numpy.ctypeslib can do it, but takes long to import."""
    floats: Any = (ctypes.c_float * count).from_address(address)
    return np.frombuffer(floats, np.float32)
