"""The ordinary memory that a large vocabulary takes is asked for before a model is opened."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from library import Library

from flexserve.errors import GrantRefusedError
from flexserve.harness.shapes import Shape
from flexserve.units import MIB

pytestmark = pytest.mark.engine

LARGE = Shape("large-vocabulary", "llama", 1, 64, 128, 2, 2, 262_144, 128)


def peak(pid: int) -> int:
    """Return the most bytes that a process ever had in memory."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def test_a_model_whose_vocabulary_has_no_room_is_refused_unread_and_others_are_served(
    library: Library, tiny: str
) -> None:
    name = library.add(library.file(LARGE, "q8_0"), "large")
    with library.open(budget=64 * MIB) as world:
        world.generate(tiny, "Once", 2)
        before = peak(world.pid)
        with pytest.raises(GrantRefusedError, match="Opening large") as refused:
            world.generate(name, "Once", 1)
        assert refused.value.code == "memory_refused"
        assert peak(world.pid) - before < 8 * MIB
        world.generate(tiny, "Once", 2)
        world.budget = None
        assert world.generate(name, "Once", 1).finished.usage.completion_tokens <= 1


def test_what_a_vocabulary_took_is_told_of_an_open_model_and_counted_by_the_os(
    own_library: Library, library: Library
) -> None:
    name = own_library.add(library.file(LARGE, "q8_0"), "large")
    with own_library.open() as world:
        closed = world.status()
        assert closed.models[0].heap == 0
        world.generate(name, "Once", 1)
        world.recall(None)
        there = world.status()
        assert there.memory.secure == 0, "all that was granted went back"
        grown = there.memory.os_rss - closed.memory.os_rss
        assert 16 * MIB < grown < there.models[0].heap, "the OS counts what did not"
