"""Conversations on a disk of the guest's, which may lie about all of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from played_disk import MemoryBlocks

from flexserve.errors import StoredDataError
from flexserve.platforms.trustzone.disk_image import SLOT, TAG, DiskImage, name_of
from flexserve.platforms.trustzone.ram import PAGE
from flexserve.tee_client.kept_kv import HEAD, KvOnDisk

MANIFEST: Any = SimpleNamespace(model_id="ab" * 16)
SIZES = [10, 10, 20]
PARTS = [bytes([number]) * size for number, size in enumerate(SIZES)]


@pytest.fixture
def image() -> DiskImage:
    return DiskImage.create(MemoryBlocks(8 * SLOT // PAGE), 8 * SLOT)


def test_a_conversation_comes_back_in_its_parts_until_it_is_forgotten(image: DiskImage) -> None:
    kept = KvOnDisk(image)
    name = kept.write(MANIFEST, bytes(HEAD), PARTS)
    assert kept.heads(MANIFEST) == [(name, bytes(HEAD))]
    assert list(kept.read(name, SIZES)) == PARTS
    kept.forget(name)
    kept.forget(name)
    assert kept.heads(MANIFEST) == []


@pytest.mark.parametrize("cut", [[5, 35], [15, 25], [39], [41], [10, 10, 20, 1]], ids=str)
def test_one_that_the_disk_cuts_in_other_places_is_damaged(image: DiskImage, cut: list[int]) -> None:
    name = name_of("kv", MANIFEST.model_id, "x")
    image.put(name, bytes(HEAD), [(bytes(size), bytes(TAG)) for size in cut])
    with pytest.raises(StoredDataError):
        list(KvOnDisk(image).read(name, SIZES))
