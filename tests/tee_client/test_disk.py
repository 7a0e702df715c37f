"""Weights by way of a guest's disk, with a guest and an application that are played."""

from __future__ import annotations

import struct

import pytest
from played_disk import MemoryBlocks, PlayedGuest
from played_wire import PlayedWire, answer

from flexserve.errors import GrantRefusedError, NormalWorldError, PeerError
from flexserve.platforms.trustzone.disk_image import SLOT, TAG, DiskImage
from flexserve.platforms.trustzone.ram import PAGE
from flexserve.tee_client.disk import Disk
from flexserve.tee_client.link import Link
from flexserve.tee_client.messages import Ask, Status

SLOTS = 12
CHUNKS = 3
SALT = bytes(range(32))


class PlayedApp:
    """An application that seals by counting, and wants back what it sealed."""

    def __init__(self, guest: PlayedGuest) -> None:
        self.guest = guest
        self.loaded = dict[int, bytes]()
        self.damaged: int | None = None  # a chunk
        self.bad = False
        self.seals = CHUNKS  # of them

    def hear(self, kind: int, tag: int, arguments: tuple[int, ...], payload: bytes) -> bytes:
        number = arguments[1]
        match Ask(kind):
            case Ask.SEAL if number < self.seals:
                return answer(tag, Status.DONE, chunk(number), *struct.unpack("<4Q", SALT))
            case Ask.LOAD_PAGES:
                return answer(tag, self._load(number, payload))
        return answer(tag, Status.BAD)

    def _load(self, number: int, payload: bytes) -> Status:
        if self.bad:
            return Status.BAD
        runs = struct.iter_unpack("<2Q", payload[TAG:])
        data = b"".join(self.guest.granted.pop(first) for first, _ in runs)
        if number == self.damaged:
            return Status.DAMAGED
        self.loaded[number] = data[: len(chunk(number)) - TAG] + payload[:TAG]
        return Status.DONE


def chunk(number: int) -> bytes:
    """Return a sealed chunk with its tag; the last one is short."""
    return bytes([number + 1]) * (SLOT if number < CHUNKS - 1 else 100) + bytes([100 + number]) * TAG


@pytest.fixture
def guest() -> PlayedGuest:
    blocks = MemoryBlocks(SLOTS * SLOT // PAGE)
    DiskImage.create(blocks, SLOTS * SLOT)
    return PlayedGuest(blocks)


@pytest.fixture
def app(guest: PlayedGuest) -> PlayedApp:
    return PlayedApp(guest)


@pytest.fixture
def disk(guest: PlayedGuest, app: PlayedApp) -> Disk:
    return Disk(guest, Link(PlayedWire(app.hear)))


def test_weights_are_sealed_to_the_disk_and_loaded_from_the_pages_that_it_read_to(
    disk: Disk, guest: PlayedGuest, app: PlayedApp
) -> None:
    weights = disk.seal("weights/a", 0, CHUNKS)
    assert weights.head == SALT
    assert Disk(guest, Link(PlayedWire(app.hear))).image.objects()["weights/a"] == weights
    assert [disk.load(weights, 0, number).status for number in range(CHUNKS)] == [Status.DONE] * CHUNKS
    assert app.loaded == {number: chunk(number) for number in range(CHUNKS)}
    assert guest.granted == {}


def test_what_is_damaged_the_application_has_wiped_and_keeps(
    disk: Disk, guest: PlayedGuest, app: PlayedApp
) -> None:
    weights = disk.seal("weights/a", 0, CHUNKS)
    app.damaged = 1
    assert [disk.load(weights, 0, number).status for number in (0, 1)] == [Status.DONE, Status.DAMAGED]
    assert set(app.loaded) == {0}
    assert guest.granted == {}


def test_pages_that_the_application_does_not_take_go_back(
    disk: Disk, guest: PlayedGuest, app: PlayedApp
) -> None:
    weights = disk.seal("weights/a", 0, CHUNKS)
    app.bad = True
    assert disk.load(weights, 0, 2).status is Status.BAD
    assert guest.granted == {}


def test_a_guest_without_memory_refuses_as_it_does_when_it_is_asked_for_memory(
    disk: Disk, guest: PlayedGuest, app: PlayedApp
) -> None:
    weights = disk.seal("weights/a", 0, CHUNKS)
    guest.memory_left = 0
    with pytest.raises(GrantRefusedError):
        disk.load(weights, 0, 0)
    assert app.loaded == {}


@pytest.mark.parametrize("lie", [{}, {"a": 512}, {"7": 511}, {"7": -512}, {"7": 512, "x": 1}])
def test_a_guest_that_answers_nonsense_is_blamed(
    disk: Disk, guest: PlayedGuest, lie: dict[str, object]
) -> None:
    weights = disk.seal("weights/a", 0, CHUNKS)
    guest.answers = lie
    with pytest.raises(NormalWorldError):
        disk.load(weights, 0, 0)


def test_a_guest_says_what_it_could_hand_over(disk: Disk, guest: PlayedGuest) -> None:
    guest.memory_left = 3
    assert disk.room() == 3 * SLOT
    guest.memory_left = 0
    assert disk.room() == 0
    guest.memory_left = -2
    assert disk.room() == -2 * SLOT
    for lie in ({}, {"pages": -1 << 40}, {"pages": 1 << 40}, {"pages": "1"}):
        guest.answers = lie
        with pytest.raises(NormalWorldError):
            disk.room()


def test_an_application_that_stops_in_the_midst_of_sealing_leaves_the_object_that_was_there(
    disk: Disk, guest: PlayedGuest, app: PlayedApp
) -> None:
    before = disk.seal("weights/a", 0, CHUNKS)
    app.seals = 2
    with pytest.raises(PeerError):
        disk.seal("weights/a", 0, CHUNKS)
    assert Disk(guest, Link(PlayedWire(app.hear))).image.objects()["weights/a"] == before
