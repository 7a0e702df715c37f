"""Baselines: the same results as FlexServe, by the policies that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_engine import CHUNK, FakeSource, Machine, content

from flexserve.bench.baselines import NwBase, Strawman, StrawmanOpt, make_residency
from flexserve.errors import GrantRefusedError, NormalWorldError, StoredDataError
from flexserve.platforms.linux import mman
from flexserve.platforms.linux.secure_memory import PlainMemory
from flexserve.platforms.ports import Protection
from flexserve.trusted.memory.flexmem import FlexMem, OpenHanded
from flexserve.trusted.weights.job import RestoreStats
from flexserve.trusted.weights.residency import Residency

COUNT = 22  # chunks of a machine's model
READS = [[0], [1, 2], [], [3], [4, 5, 6], [7], [8, 9], [10, 11], [12, 13], [14], [15, 16], [17], [18, 19]]
Make = Callable[[FlexMem, int], Residency]


@pytest.fixture(params=[Strawman, StrawmanOpt])
def strawman(request: pytest.FixtureRequest) -> Make:
    return request.param


@pytest.fixture
def nw_base(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(
        memory=PlainMemory(CHUNK), residency=lambda flexmem, threads: NwBase(flexmem, threads, tmp_path)
    )
    yield machine
    machine.close()


def test_a_strawman_computes_what_flexserve_computes_request_after_request(strawman: Make):
    machine = Machine(residency=strawman, delay=0.0003)
    for _ in range(4):
        assert machine.compute(READS) == machine.expected(READS)
        machine.recall(COUNT)
        assert machine.weights.resident == 0
    machine.close()


def test_a_strawman_holds_all_its_memory_before_it_reads_anything(strawman: Make):
    machine = Machine(residency=strawman)
    held: list[int] = []
    read = machine.source.read

    def look(buffer: int, index: int, target: memoryview) -> None:
        held.append(sum(machine.flexmem.committed(part.arena) for part in machine.weights.parts))
        read(buffer, index, target)

    machine.source.read = look  # type: ignore[method-assign]
    machine.compute(READS)
    assert min(held) == COUNT * CHUNK
    machine.close()


def test_the_plain_strawman_loads_all_then_decrypts_all_then_computes():
    machine = Machine(residency=Strawman)
    machine.compute([[0]], lambda _node: machine.source.steps.append("compute"))
    assert machine.source.steps == ["read"] * COUNT + ["decrypt"] * COUNT + ["compute"]
    machine.close()


def test_a_strawman_allocates_once_for_all_graphs_of_a_request(
    strawman: Make, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1})  # loaders stand still beside compute
    machine = Machine(residency=strawman, delay=0.005)
    for _ in range(5):
        machine.compute([[0]])
    assert len(machine.source.restored) == len(set(machine.source.restored))
    machine.close()


def test_a_strawman_gets_all_or_nothing(strawman: Make):
    machine = Machine(residency=strawman, budget=(COUNT - 1) * CHUNK)
    with pytest.raises(GrantRefusedError):
        machine.compute([[0]])
    machine.budget.limit = COUNT * CHUNK
    machine.budget.returned(machine.flexmem.return_unused())
    assert machine.compute(READS) == machine.expected(READS)
    machine.close()


def test_a_damaged_chunk_stops_a_strawman_and_the_next_request_begins_anew(strawman: Make):
    machine = Machine(residency=strawman)
    machine.source.damaged.add((0, 8))
    with pytest.raises(StoredDataError):
        machine.compute(READS)
    machine.source.damaged.clear()
    assert machine.compute(READS) == machine.expected(READS)
    machine.close()


def test_a_strawman_says_where_its_time_went(strawman: Make):
    machine = Machine(residency=strawman, delay=0.0005)
    stats = RestoreStats()
    machine.residency.restore(machine.weights, stats)
    assert stats.restored == machine.weights.size
    assert min(stats.waited, stats.allocate, stats.load, stats.decrypt) > 0
    machine.close()


def test_baselines_bring_nothing_ahead(strawman: Make):
    machine = Machine(residency=strawman)
    machine.residency.prefetch(machine.weights, range(COUNT))
    assert not machine.residency.prefetching
    assert machine.source.restored == []
    machine.close()


def test_mapped_weights_take_no_secure_memory_and_are_decrypted_once(nw_base: Machine):
    for count in (0, 5, COUNT):
        nw_base.residency.evict(nw_base.weights, nw_base.weights.eviction_order()[:count])
        stats = RestoreStats()
        nw_base.residency.restore(nw_base.weights, stats)
        assert stats.decrypt == 0
        for chunk in range(COUNT):
            part, index, length = nw_base.weights.locate(chunk)
            address = nw_base.weights.parts[part].arena.base + index * CHUNK
            assert memory_at(address, length) == expected(nw_base, chunk)
    assert len(nw_base.source.restored) == COUNT
    assert nw_base.budget.granted == 0


def test_mapped_weights_can_be_retired_and_their_addresses_freed(nw_base: Machine):
    nw_base.residency.restore(nw_base.weights, RestoreStats())
    nw_base.residency.retire(nw_base.weights)
    for part in nw_base.weights.parts:
        assert nw_base.flexmem.free(part.arena) == 0
    nw_base.weights = nw_base.model((5,), FakeSource())
    nw_base.residency.restore(nw_base.weights, RestoreStats())
    assert nw_base.weights.whole


class ProtectedMemory(PlainMemory):
    """Memory that says it is protected."""

    @property
    def protection(self) -> Protection:
        return Protection(name="test", protected=True, summary="")


def test_the_unprotected_baseline_does_not_pass_for_protected(tmp_path: Path):
    flexmem = FlexMem(ProtectedMemory(CHUNK), 1 << 20, OpenHanded())
    with pytest.raises(NormalWorldError):
        make_residency("nw-base", flexmem, 1, tmp_path)


def memory_at(address: int, length: int) -> bytes:
    return bytes(mman.view(address, length))


def expected(machine: Machine, chunk: int) -> bytes:
    part, index, length = machine.weights.locate(chunk)
    return content(part, index, length)
