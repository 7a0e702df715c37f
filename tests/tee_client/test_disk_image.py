"""A disk's directory and objects: old or new after every crash, never a mixture; and bounded."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from played_disk import MemoryBlocks, PowerGoneError

from flexserve.errors import CallerError, NormalWorldError, StoredDataError
from flexserve.platforms.trustzone.disk_image import (
    MOST_HEAD,
    SLOT,
    TAG,
    DiskImage,
    FileBlocks,
    StoredObject,
    name_of,
)
from flexserve.platforms.trustzone.ram import PAGE

SLOTS = 8
OLD = [(b"old" * 1000, b"t" * TAG), (b"o", b"u" * TAG)]
NEW = [(b"new" * 2000, b"v" * TAG)]


def blocks_with(name: str, pieces: list[tuple[bytes, bytes]]) -> MemoryBlocks:
    blocks = MemoryBlocks(SLOTS * SLOT // PAGE)
    DiskImage.create(blocks, SLOTS * SLOT).put(name, b"head", pieces)
    return blocks


def contents(image: DiskImage, name: str) -> list[tuple[bytes, bytes]]:
    return [(image.read(piece), piece.tag) for piece in image.objects()[name].pieces]


def test_what_was_put_is_there_when_the_disk_is_opened_again() -> None:
    image = DiskImage(blocks_with("weights/a", OLD))
    assert image.objects()["weights/a"].head == b"head"
    assert contents(image, "weights/a") == OLD


def test_a_disk_without_a_directory_is_damaged_and_one_without_room_is_none() -> None:
    with pytest.raises(StoredDataError):
        DiskImage(MemoryBlocks(SLOTS * SLOT // PAGE))
    with pytest.raises(CallerError):
        DiskImage.create(MemoryBlocks(SLOT // PAGE), SLOT)


def test_an_object_is_replaced_and_removed_and_its_room_is_free_again() -> None:
    image = DiskImage(blocks_with("weights/a", OLD))
    free = image.free()
    image.put("weights/a", b"", NEW)
    assert contents(image, "weights/a") == NEW
    assert image.free() == free + SLOT
    image.remove("weights/a", "weights/of none")
    assert image.objects() == {}
    assert image.free() == (SLOTS - 1) * SLOT


def test_what_does_not_fit_changes_nothing() -> None:
    image = DiskImage(blocks_with("weights/a", OLD))
    with pytest.raises(NormalWorldError) as full:
        image.put("weights/b", b"", NEW * SLOTS)
    assert full.value.code == "disk_full"
    assert contents(image, "weights/a") == OLD
    assert image.free() == (SLOTS - 1 - 3) * SLOT


@given(writes=st.integers(0, 4), torn=st.integers(0, 5000))
def test_after_power_went_at_any_moment_an_object_is_the_old_or_the_new_one(writes: int, torn: int) -> None:
    blocks = blocks_with("kv/a/1", OLD)
    image = DiskImage(blocks)
    blocks.most_writes = writes
    try:
        image.put("kv/a/1", b"", NEW)
        whole = True
    except PowerGoneError:
        whole = False
    blocks.lose_power(torn)
    again = DiskImage(blocks)
    assert contents(again, "kv/a/1") in ((NEW,) if whole else (OLD, NEW))
    again.put("kv/a/2", b"", NEW)
    assert contents(DiskImage(blocks), "kv/a/2") == NEW


@given(at=st.integers(0, 3 * PAGE), byte=st.integers(1, 255))
def test_a_byte_that_was_altered_in_a_directory_or_an_index_is_noticed(at: int, byte: int) -> None:
    blocks = blocks_with("kv/a/1", OLD)
    index = DiskImage(blocks).objects()["kv/a/1"].index * SLOT
    for start in (0, SLOT // 2, index):
        blocks.data[start + at] ^= byte
        try:
            found = DiskImage(blocks).objects()
            assert set(found) <= {"kv/a/1"}
        except StoredDataError:
            pytest.fail("one copy of the directory was whole")
        blocks.data[start + at] ^= byte
    assert contents(DiskImage(blocks), "kv/a/1") == OLD


def test_what_belongs_to_models_that_are_gone_is_removed_and_what_another_sealed() -> None:
    blocks = MemoryBlocks(4 * SLOTS * SLOT // PAGE)
    image = DiskImage.create(blocks, 4 * SLOTS * SLOT)
    image.keep({"a", "b"}, 7)
    for kind in ("weights", "kv"):
        for model in ("a", "b"):
            image.put(name_of(kind, model, "x"), b"", NEW)
    image.keep({"b", "c"}, 7)
    assert set(DiskImage(blocks).objects()) == {"weights/b/x", "kv/b/x"}
    DiskImage(blocks).keep({"b"}, 8)
    again = DiskImage(blocks)
    assert (again.objects(), again.sealer) == ({}, 8)


def test_where_nothing_is_to_be_removed_nothing_is_written() -> None:
    blocks = blocks_with("kv/a/1", NEW)
    image = DiskImage(blocks)
    image.keep({"a"}, 3)
    image.put("kv/a/1", b"", NEW)
    blocks.most_writes = 0
    image.keep({"a", "b"}, 3)


def test_a_directory_whose_objects_claim_one_slot_costs_no_more_than_the_slots_that_there_are() -> None:
    blocks = blocks_with("kv/a/1", OLD)
    image = DiskImage(blocks)
    [found] = image.objects().values()
    image._publish({f"kv/a/{number}": found for number in range(4000)})
    assert list(DiskImage(blocks).objects()) == ["kv/a/0"]


def publish(image: DiskImage, blocks: MemoryBlocks, stored: StoredObject, index: bytes) -> None:
    """Have the directory name an object of a hostile index."""
    blocks.write(stored.index * SLOT // PAGE, index)
    digest = hashlib.sha256(index).digest()
    image._publish({stored.name: dataclasses.replace(stored, index_bytes=len(index), digest=digest)})


def test_an_index_that_names_a_slot_twice_is_none() -> None:
    blocks = blocks_with("kv/a/1", OLD)
    image = DiskImage(blocks)
    first = image.objects()["kv/a/1"].pieces[0]
    index = struct.pack("<II", 0, 2) + 2 * struct.pack(f"<II{TAG}s", first.slot, 1, b"")
    publish(image, blocks, image.put("kv/a/2", b"", NEW), index)
    assert DiskImage(blocks).objects() == {}


@pytest.mark.parametrize(("head", "whole"), [(MOST_HEAD, True), (MOST_HEAD + 1, False)])
def test_an_object_that_says_more_of_itself_than_one_may_is_none(head: int, whole: bool) -> None:
    blocks = blocks_with("kv/a/1", OLD)
    image = DiskImage(blocks)
    publish(image, blocks, image.put("kv/a/2", b"", NEW), struct.pack("<II", head, 0) + bytes(head))
    assert (list(DiskImage(blocks).objects()) == ["kv/a/2"]) is whole


def test_a_file_that_ends_too_early_is_damaged(tmp_path: Path) -> None:
    with FileBlocks.create(tmp_path / "disk", SLOT) as blocks, pytest.raises(StoredDataError):
        blocks.read(SLOT // PAGE - 1, 2)
