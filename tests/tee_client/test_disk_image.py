"""A disk's directory and objects: old or new after every crash, never a mixture; and bounded."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from played_disk import MemoryBlocks, PowerGoneError

from flexserve.errors import CallerError, NormalWorldError, StoredDataError
from flexserve.platforms.trustzone.ram import PAGE
from flexserve.tee_client.disk_image import SLOT, TAG, DiskImage, FileBlocks, name_of, prepare, sync

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


def test_a_disk_has_the_files_of_the_store_and_nothing_of_models_that_are_gone(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.flex" for name in ("a", "b")}
    for name, path in files.items():
        path.write_bytes(name.encode() * (SLOT + 5))
    with FileBlocks.create(tmp_path / "disk", 20 * SLOT) as blocks:
        image = DiskImage.create(blocks, 20 * SLOT)
        sync(image, files, 64)
        for kind in ("weights", "kv"):
            for name in files:
                image.put(name_of(kind, name, "x"), b"", NEW)
        files["a"].write_bytes(b"another")
        sync(image, files, 64)
        assert [data for data, _ in contents(image, "file/a")] == [b"another"]
        assert [len(data) for data, _ in contents(image, "file/b")] == [SLOT, 5]
        assert set(image.objects()) == {"file/a", "file/b", "weights/b/x", "kv/b/x"}
        del files["b"]
        sync(image, files, 64)
        assert set(image.objects()) == {"file/a"}


def test_a_disk_is_made_for_a_machine_and_made_anew_when_it_is_damaged(tmp_path: Path) -> None:
    model, path = tmp_path / "a.flex", tmp_path / "disk"
    model.write_bytes(b"sealed")
    for harm in (b"", b"FLEXDISK"):
        prepare(path, SLOTS * SLOT, {"a": model}, 64)
        with FileBlocks(path) as blocks:
            image = DiskImage(blocks)
            assert contents(image, "file/a") == [(b"sealed", bytes(TAG))]
            image.put("kv/a/1", b"", NEW)
        prepare(path, SLOTS * SLOT, {"a": model}, 64)
        with FileBlocks(path) as blocks:
            assert set(DiskImage(blocks).objects()) == {"file/a", "kv/a/1"}
        path.write_bytes(harm)
    prepare(path, SLOTS * SLOT, {}, 64)
    with FileBlocks(path) as blocks:
        assert not DiskImage(blocks).objects()
        assert path.stat().st_blocks * 512 < SLOT


def test_what_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "a.flex"
    path.write_bytes(b"a" * 100)
    blocks = MemoryBlocks(SLOTS * SLOT // PAGE)
    image = DiskImage.create(blocks, SLOTS * SLOT)
    sync(image, {"a": path}, 64)
    blocks.most_writes = 0
    sync(image, {"a": path}, 64)


def test_a_file_that_ends_too_early_is_damaged(tmp_path: Path) -> None:
    with FileBlocks.create(tmp_path / "disk", SLOT) as blocks, pytest.raises(StoredDataError):
        blocks.read(SLOT // PAGE - 1, 2)
