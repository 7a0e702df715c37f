"""A secure world whose engine hangs in C, for good, when it computes with a model of architecture HANGS.

python -m flexserve.testing.hanging_engine …     (the options of flexserve.protocol.launch)
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

from flexserve.secure_world import main
from flexserve.trusted.engine.context import Context, Span
from flexserve.trusted.weights.job import RestoreStats

HANGS = "phi3"

_decode = Context.decode


def hang_or_decode(self: Context, spans: Sequence[Span]) -> RestoreStats:
    """Stand in for Context.decode."""
    if self.model.header.architecture == HANGS:
        ctypes.CDLL(None).poll(None, ctypes.c_ulong(0), ctypes.c_int(-1))  # waits for nothing, without end
    return _decode(self, spans)


if __name__ == "__main__":
    Context.decode = hang_or_decode  # type: ignore[method-assign]
    os._exit(main.main())
