"""A ring in memory whose other side may be hostile."""

from __future__ import annotations

import threading
import time

import pytest

from flexserve.errors import PeerError
from flexserve.platforms.trustzone.ram import PAGE
from flexserve.tee_client.ring import ANSWERS_WRITTEN, REQUESTS_READ, REQUESTS_WRITTEN, Ring

AREA = PAGE


class Other:
    """The application's side: it is honest until it is told to lie."""

    def __init__(self) -> None:
        self.memory = memoryview(bytearray(PAGE + 2 * AREA))
        self.ended = False
        self.ring = Ring(self.memory, self._rest)

    def set_count(self, number: int, value: int) -> None:
        """Set a count."""
        self.memory[64 * number : 64 * number + 4] = (value % (1 << 32)).to_bytes(4, "little")

    def count(self, number: int) -> int:
        """Return a count."""
        return int.from_bytes(self.memory[64 * number : 64 * number + 4], "little")

    def echo(self, size: int) -> None:
        """Read so many bytes, and write them back."""
        for place in range(size):
            while self.count(REQUESTS_WRITTEN) == place % (1 << 32):
                time.sleep(0.0001)
            while (self.count(ANSWERS_WRITTEN) - self.count(3)) % (1 << 32) == AREA:
                time.sleep(0.0001)
            self.memory[PAGE + AREA + place % AREA] = self.memory[PAGE + place % AREA]
            self.set_count(REQUESTS_READ, place + 1)
            self.set_count(ANSWERS_WRITTEN, place + 1)

    def _rest(self) -> None:
        if self.ended:
            raise PeerError("It has ended.")
        time.sleep(0.0001)


@pytest.fixture
def other() -> Other:
    return Other()


def test_what_is_longer_than_the_ring_goes_through_it(other: Other) -> None:
    data = bytes(range(256)) * 40
    threading.Thread(target=other.echo, args=(len(data),), daemon=True).start()
    for start in range(0, len(data), 3000):
        other.ring.write(data[start : start + 3000])
        assert other.ring.read(len(data[start : start + 3000])) == data[start : start + 3000]


def test_it_goes_on_where_the_last_one_who_used_it_stopped(other: Other) -> None:
    other.ring.write(b"first")
    Ring(other.memory, lambda: None).write(b"second")
    assert other.memory[PAGE : PAGE + 11].tobytes() == b"firstsecond"


@pytest.mark.parametrize("lie", [-1, 6, 1 << 20, 1 << 31])
def test_requests_that_were_not_written_cannot_be_read(other: Other, lie: int) -> None:
    other.ring.write(b"hello")
    other.set_count(REQUESTS_READ, lie)
    with pytest.raises(PeerError, match="not written"):
        other.ring.write(b"more")


def test_a_count_of_what_was_read_does_not_go_backwards(other: Other) -> None:
    other.ring.write(b"hello")
    other.set_count(REQUESTS_READ, 5)
    other.ring.write(b"more")
    other.set_count(REQUESTS_READ, 4)
    with pytest.raises(PeerError, match="not written"):
        other.ring.write(b"more")


@pytest.mark.parametrize("lie", [-1, AREA + 1, 1 << 31])
def test_there_are_no_more_answers_than_there_is_room_for(other: Other, lie: int) -> None:
    other.set_count(ANSWERS_WRITTEN, lie)
    with pytest.raises(PeerError, match="no room"):
        other.ring.read(1)


def test_answers_are_not_taken_back(other: Other) -> None:
    other.set_count(ANSWERS_WRITTEN, 10)
    assert other.ring.read(1) == bytes(1)
    other.set_count(ANSWERS_WRITTEN, 5)
    with pytest.raises(PeerError, match="took back"):
        other.ring.read(9)


def test_our_own_counts_are_not_believed_from_the_memory(other: Other) -> None:
    other.set_count(REQUESTS_WRITTEN, 100)
    other.ring.write(b"hello")
    assert other.count(REQUESTS_WRITTEN) == 5


def test_who_waits_hears_of_the_end(other: Other) -> None:
    other.ended = True
    with pytest.raises(PeerError, match="ended"):
        other.ring.read(1)
    with pytest.raises(PeerError, match="ended"):
        other.ring.write(bytes(AREA + 1))


def test_less_than_three_pages_are_no_ring() -> None:
    with pytest.raises(ValueError, match="three pages"):
        Ring(memoryview(bytearray(2 * PAGE)), lambda: None)
