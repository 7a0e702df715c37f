"""The memory of the NPU's jobs: it grows as jobs need it, and Flex-Mem alone knows what is there."""

from __future__ import annotations

import pytest

from flexserve.errors import GrantRefusedError
from flexserve.simulator.secure_memory import SimSecureMemory
from flexserve.trusted.engine.jobs import JobMemory
from flexserve.trusted.memory.flexmem import FlexMem, OpenHanded
from flexserve.trusted.memory.ownership import PageState
from flexserve.units import KIB, MIB

PLACE = 64 * KIB


def jobs_in(total: int) -> tuple[JobMemory, FlexMem]:
    # A made-up arena of 256 MiB costs as much; its chunks are large, so that tables are short.
    flexmem = FlexMem(SimSecureMemory(total, MIB), total, OpenHanded())
    return JobMemory(flexmem, PLACE), flexmem


def test_memory_grows_with_what_jobs_need_and_goes_as_a_whole() -> None:
    jobs, flexmem = jobs_in(64 * MIB)
    jobs.provide(activations=MIB, results=MIB)
    first = jobs.committed
    jobs.provide(activations=4 * MIB, results=MIB)
    jobs.provide(activations=MIB, results=MIB)
    assert first < jobs.committed == flexmem.bytes_in(PageState.SECURE)
    assert jobs.release() == 6 * MIB
    assert jobs.committed == jobs.room == flexmem.bytes_in(PageState.SECURE) == 0


def test_a_refusal_leaves_what_was_there() -> None:
    jobs, flexmem = jobs_in(4 * MIB)
    jobs.provide(activations=MIB, results=MIB)
    before = jobs.committed, jobs.results, jobs.room
    with pytest.raises(GrantRefusedError):
        jobs.provide(activations=8 * MIB, results=MIB)
    assert (jobs.committed, jobs.results, jobs.room) == before
    assert flexmem.bytes_in(PageState.SECURE) == jobs.committed
