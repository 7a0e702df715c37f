"""Weights and KV by way of a guest's disk, with a guest and an application that are played."""

from __future__ import annotations

import struct

import pytest
from played_application import PlayedWire, answer
from played_disk import MemoryBlocks, PlayedGuest

from flexserve.errors import GrantRefusedError, NormalWorldError, PeerError, StoredDataError
from flexserve.platforms.trustzone.ram import PAGE
from flexserve.tee_client.disk import Disk
from flexserve.tee_client.disk_image import SLOT, TAG, DiskImage
from flexserve.tee_client.link import Link
from flexserve.tee_client.messages import KEPT_PART, Ask, Status

SLOTS = 12
CHUNKS = 3
SALT = bytes(range(32))
KV = 40 * KEPT_PART + 7  # bytes: more parts than a piece has


class PlayedApp:
    """An application that seals by counting, and wants back what it sealed."""

    def __init__(self, guest: PlayedGuest) -> None:
        self.guest = guest
        self.loaded = dict[int, bytes]()
        self.damaged: int | None = None  # a chunk
        self.bad = False
        self.resumed = 0  # parts

    def hear(self, kind: int, tag: int, arguments: tuple[int, ...], payload: bytes) -> bytes:
        number = arguments[1]
        match Ask(kind):
            case Ask.SEAL:
                return answer(tag, Status.DONE, chunk(number), *struct.unpack("<4Q", SALT))
            case Ask.LOAD_PAGES:
                return answer(tag, self._load(number, payload))
            case Ask.KEEP:
                return answer(tag, Status.DONE, SALT, KV)
            case Ask.KEPT:
                return answer(tag, Status.DONE, part(number))
            case Ask.RESUME:
                known = payload == SALT and arguments[2] == KV
                return answer(tag, Status.DONE if known else Status.BAD)
            case Ask.RESUMED:
                self.resumed += 1
                return answer(tag, Status.DONE if payload == part(number) else Status.DAMAGED)
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


def part(number: int) -> bytes:
    """Return a sealed part of KV with its tag."""
    return bytes([number + 1]) * (min(KEPT_PART, KV - number * KEPT_PART) + TAG)


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
    assert disk.load(weights, 0, range(CHUNKS)) is None
    assert app.loaded == {number: chunk(number) for number in range(CHUNKS)}
    assert guest.granted == {}


def test_after_a_damaged_chunk_nothing_is_loaded_and_the_guest_has_the_rest_of_its_pages(
    disk: Disk, guest: PlayedGuest, app: PlayedApp
) -> None:
    weights = disk.seal("weights/a", 0, CHUNKS)
    app.damaged = 1
    reply = disk.load(weights, 0, range(CHUNKS))
    assert reply is not None
    assert reply.status is Status.DAMAGED
    assert set(app.loaded) == {0}
    assert guest.granted == {}


def test_pages_that_the_application_does_not_take_go_back(
    disk: Disk, guest: PlayedGuest, app: PlayedApp
) -> None:
    weights = disk.seal("weights/a", 0, CHUNKS)
    app.bad = True
    reply = disk.load(weights, 0, [2])
    assert reply is not None
    assert reply.status is Status.BAD
    assert guest.granted == {}


def test_a_guest_without_memory_refuses_as_it_does_when_it_is_asked_for_memory(
    disk: Disk, guest: PlayedGuest, app: PlayedApp
) -> None:
    weights = disk.seal("weights/a", 0, CHUNKS)
    guest.memory_left = 1
    with pytest.raises(GrantRefusedError):
        disk.load(weights, 0, range(CHUNKS))
    assert set(app.loaded) == {0}


@pytest.mark.parametrize("lie", [{}, {"a": 512}, {"7": 511}, {"7": -512}, {"7": 512, "x": 1}])
def test_a_guest_that_answers_nonsense_is_blamed(
    disk: Disk, guest: PlayedGuest, lie: dict[str, object]
) -> None:
    weights = disk.seal("weights/a", 0, CHUNKS)
    guest.answers = lie
    with pytest.raises(NormalWorldError):
        disk.load(weights, 0, [0])


def test_kv_is_kept_and_a_sequence_goes_on_from_it_after_a_restart(
    disk: Disk, guest: PlayedGuest, app: PlayedApp
) -> None:
    assert disk.keep("kv/a/7", 0, 1).status is Status.DONE
    again = Disk(guest, Link(PlayedWire(app.hear)))
    assert again.resume("kv/a/7", 0, 1).status is Status.DONE
    assert app.resumed == 41


def test_kv_that_was_altered_on_the_disk_ends_with_the_part_that_is_damaged(
    disk: Disk, guest: PlayedGuest, app: PlayedApp
) -> None:
    disk.keep("kv/a/7", 0, 1)
    second = disk.image.objects()["kv/a/7"].pieces[1]
    guest.blocks.data[second.slot * SLOT] ^= 1
    assert disk.resume("kv/a/7", 0, 1).status is Status.DAMAGED
    assert app.resumed == 32


def test_kv_that_the_disk_has_not_is_said_to_be_missing(disk: Disk) -> None:
    with pytest.raises(StoredDataError):
        disk.resume("kv/a/7", 0, 1)


def test_an_application_that_stops_in_the_midst_of_sealing_leaves_the_object_that_was_there(
    guest: PlayedGuest, app: PlayedApp
) -> None:
    def hear(kind: int, tag: int, arguments: tuple[int, ...], payload: bytes) -> bytes:
        if kind == Ask.KEPT and arguments[1] == 33:
            return answer(tag, Status.BAD)
        return app.hear(kind, tag, arguments, payload)

    Disk(guest, Link(PlayedWire(app.hear))).keep("kv/a/7", 0, 1)
    disk = Disk(guest, Link(PlayedWire(hear)))
    before = disk.image.objects()["kv/a/7"]
    with pytest.raises(PeerError):
        disk.keep("kv/a/7", 0, 1)
    assert Disk(guest, Link(PlayedWire(app.hear))).image.objects()["kv/a/7"] == before
