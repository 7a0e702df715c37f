"""Flex-Mem while the platform works: what is in one thread's hands is kept from every other."""

from __future__ import annotations

import threading

import pytest
from flexmem_bench import ARENA, CHUNK, TOTAL, Watched

from flexserve.errors import InternalError
from flexserve.platforms.ports import Arena
from flexserve.simulator.secure_memory import SimSecureMemory
from flexserve.trusted.memory.flexmem import FlexMem, OpenHanded
from flexserve.trusted.memory.ownership import PageState


@pytest.fixture
def watched() -> Watched:
    return Watched(TOTAL * CHUNK, CHUNK)


@pytest.mark.parametrize("under_way", ["commit", "release", "recycle"])
def test_a_chunk_in_one_threads_hands_is_refused_to_every_other(watched: Watched, under_way: str):
    flexmem = FlexMem(watched, TOTAL * CHUNK, OpenHanded())
    arena = flexmem.reserve(ARENA * CHUNK)
    flexmem.grant(2 * CHUNK)
    if under_way != "commit":
        flexmem.commit(arena, 0, CHUNK)
    refused: list[str] = []

    def meanwhile() -> None:
        watched.meanwhile = lambda: None
        for name in ("commit", "try_commit", "release", "recycle", "view"):
            with pytest.raises(InternalError):
                getattr(flexmem, name)(arena, 0, CHUNK)
            refused.append(name)
        with pytest.raises(InternalError, match="another thread"):
            flexmem.free(arena)
        assert not flexmem.holds(arena, 0)
        flexmem.check()

    watched.meanwhile = meanwhile
    getattr(flexmem, under_way)(arena, 0, CHUNK)
    assert len(refused) == 5
    assert flexmem.holds(arena, 0) == (under_way == "commit")
    flexmem.free(arena)
    flexmem.check()


def test_memory_that_a_commit_is_about_to_take_is_kept_ready_and_given_to_no_other(watched: Watched):
    flexmem = FlexMem(watched, TOTAL * CHUNK, OpenHanded())
    arena = flexmem.reserve(ARENA * CHUNK)
    flexmem.commit(arena, 0, 3 * CHUNK)
    flexmem.recycle(arena, 0, 2 * CHUNK)
    seen: list[tuple[int, int]] = []

    def meanwhile() -> None:
        flexmem.settle()
        seen.append((flexmem.unused() // CHUNK, flexmem.resident() // CHUNK))

    watched.meanwhile = meanwhile
    flexmem.commit(arena, 0, CHUNK)
    assert seen == [(1, 3)]


def test_a_range_whose_release_fails_is_nobodys_any_more(watched: Watched):
    flexmem = FlexMem(watched, TOTAL * CHUNK, OpenHanded())
    arena = flexmem.reserve(ARENA * CHUNK)
    flexmem.commit(arena, 0, 2 * CHUNK)

    def meanwhile() -> None:
        raise OSError("the kernel would not")

    watched.meanwhile = meanwhile
    with pytest.raises(OSError, match="would not"):
        flexmem.release(arena, 0, CHUNK)
    watched.meanwhile = lambda: None
    for call in (flexmem.commit, flexmem.release, flexmem.recycle, flexmem.view):
        with pytest.raises(InternalError):
            call(arena, 0, CHUNK)
    assert flexmem.committed(arena) == CHUNK
    assert flexmem.bytes_in(PageState.RECALLING) == CHUNK
    flexmem.check()


def test_what_lies_side_by_side_is_released_in_one_call(watched: Watched):
    flexmem = FlexMem(watched, TOTAL * CHUNK, OpenHanded())
    arena = flexmem.reserve(ARENA * CHUNK)
    for chunk in (3, 0, 1):
        flexmem.commit(arena, chunk * CHUNK, CHUNK)
    flexmem.release_all(arena)
    assert watched.released == [(0, 2), (3, 1)]


def test_threads_that_commit_and_release_at_once_lose_no_chunk():
    memory = SimSecureMemory(64 * CHUNK, CHUNK)
    flexmem = FlexMem(memory, 64 * CHUNK, OpenHanded())
    failures: list[BaseException] = []

    def churn(arena: Arena) -> None:
        try:
            for turn in range(60):
                flexmem.commit(arena, 0, arena.size)
                flexmem.recycle(arena, (turn % ARENA) * CHUNK, CHUNK)
                flexmem.release_all(arena)
        except BaseException as error:
            failures.append(error)

    arenas = [flexmem.reserve(ARENA * CHUNK) for _ in range(4)]
    threads = [threading.Thread(target=churn, args=(arena,)) for arena in arenas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    flexmem.return_unused()
    flexmem.check()
    assert flexmem.bytes_in(PageState.NORMAL) == 64 * CHUNK
