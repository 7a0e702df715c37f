"""Buffers of llama.cpp's whose end is the end of what may be read: one number more, and the process dies.

llama.cpp hands out pointers into larger buffers, behind which lies somebody's data. Reading too much
of them goes unnoticed; here their contents come right before a page that nobody may read.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from typing import Any

from llama_cpp import llama_cpp as lib

_ROOM = 1 << 20  # bytes of the largest buffer that is guarded


class _Guard:
    """A place whose last byte is followed by a page without access."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _ROOM + mmap.PAGESIZE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._end = base + _ROOM
        libc = ctypes.CDLL(None, use_errno=True)
        done = libc.mprotect(ctypes.c_void_p(self._end), ctypes.c_size_t(mmap.PAGESIZE), 0)
        assert done == 0, "mprotect failed"

    def hold(self, source: Any, count: int) -> Any:
        """Return a pointer to a copy of `count` floats at `source`."""
        start = self._end - 4 * count
        ctypes.memmove(start, source, 4 * count)
        return ctypes.cast(start, ctypes.POINTER(ctypes.c_float))


def guard_buffers() -> None:
    """Have every vector and every row of logits handed out with nothing readable behind it, from now on."""
    _guard("llama_get_embeddings_seq", lib.llama_model_n_embd_out)
    _guard("llama_get_logits_ith", lambda model: lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)))


def _guard(name: str, count: Callable[[int], int]) -> None:
    original, place = getattr(lib, name), _Guard()

    def guarded(context: int, number: int) -> Any:
        found = original(context, number)
        return place.hold(found, count(lib.llama_get_model(context))) if found else found

    setattr(lib, name, guarded)
