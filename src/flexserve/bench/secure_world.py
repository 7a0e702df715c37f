"""A secure world that is no product: python -m flexserve.bench.secure_world WHICH OPTION…

`WHICH` is one of flexserve.bench.baselines, or "freed": FlexServe's own, but for secret memory that is freed
and allocated anew where the product moves it. The options are those of flexserve.protocol.launch. The product
has no way to start one.
"""

from __future__ import annotations

import functools
import sys

from flexserve.bench.baselines import BASELINES, make_residency
from flexserve.platforms.linux.secure_memory import MemfdSecretMemory
from flexserve.platforms.ports import Arena
from flexserve.protocol.ending import leave
from flexserve.secure_world.main import main
from flexserve.secure_world.program import LINUX_MEMORIES

_FREED = "freed"


class FreedMemory(MemfdSecretMemory):
    """Secret memory that does not move."""

    def release(self, arena: Arena, offset: int, length: int, *, keep: bool = False) -> None:
        """Give the memory of a committed range back, whether or not it is wanted again."""
        del keep
        super().release(arena, offset, length)


if __name__ == "__main__":
    which, *options = sys.argv[1:]
    if which == _FREED:
        leave(main(options, memories={**LINUX_MEMORIES, "secret": FreedMemory}))
    if which not in BASELINES:
        sys.exit(f"{which!r} is no baseline; there are {', '.join((*BASELINES, _FREED))}")
    leave(main(options, functools.partial(make_residency, which)))
