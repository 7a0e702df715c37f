"""The books of chunks: what one thread has in hand, another is refused."""

import pytest

from flexserve.errors import InternalError
from flexserve.platforms.chunks import ChunkBooks, ChunkState
from flexserve.platforms.ports import Arena

UNIT = 4096
ARENA = Arena(base=UNIT, size=4 * UNIT)


@pytest.fixture
def books() -> ChunkBooks:
    books = ChunkBooks(UNIT)
    books.open(ARENA)
    return books


def commit(books: ChunkBooks, offset: int, length: int) -> None:
    books.claim_commit(ARENA, offset, length)
    books.settle(ARENA, offset, length, ChunkState.COMMITTED)


@pytest.mark.parametrize("claim", ["claim_commit", "claim_release"])
def test_a_chunk_in_one_threads_hands_is_refused_to_every_other(books: ChunkBooks, claim: str):
    if claim == "claim_release":
        commit(books, 0, UNIT)
    getattr(books, claim)(ARENA, 0, UNIT)
    for method in (books.claim_commit, books.claim_release, books.require_committed):
        with pytest.raises(InternalError):
            method(ARENA, 0, UNIT)


def test_an_arena_is_not_closed_under_a_thread_that_uses_it(books: ChunkBooks):
    books.claim_commit(ARENA, 0, UNIT)
    with pytest.raises(InternalError):
        books.close(ARENA)
    books.settle(ARENA, 0, UNIT, ChunkState.EMPTY)
    books.close(ARENA)
    assert books.arenas() == []


def test_committed_runs_are_maximal_and_in_order(books: ChunkBooks):
    assert books.committed_runs(ARENA) == []
    commit(books, 3 * UNIT, UNIT)
    commit(books, 0, UNIT)
    commit(books, UNIT, UNIT)
    assert books.committed_runs(ARENA) == [(0, 2 * UNIT), (3 * UNIT, UNIT)]


def test_equal_looking_arenas_are_not_the_same(books: ChunkBooks):
    with pytest.raises(InternalError):
        books.claim_commit(Arena(base=ARENA.base, size=ARENA.size), 0, UNIT)


@pytest.mark.parametrize("chunk", [0, -4096, 3 * 4096])
def test_a_chunk_that_is_no_power_of_two_is_refused(chunk: int):
    with pytest.raises(ValueError, match="power of two"):
        ChunkBooks(chunk)
