"""The file of the machine's disk: one machine has it, it takes what was written, and it is made anew."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flexserve.emulator.store_disk import SIZE, StoreDisk
from flexserve.errors import NormalWorldError
from flexserve.platforms.trustzone.disk_image import SLOT, TAG, DiskImage, FileBlocks, name_of
from flexserve.trusted.store import DeviceKey, Store
from flexserve.trusted.store.files import on_disk
from flexserve.units import MIB

MODEL = Path(__file__).parents[2] / "models/tiny/flexserve-tiny.gguf"
PIECES = [(b"x" * 5000, bytes(TAG))]
FIRMWARE = b"firmware"


@pytest.fixture
def models(tmp_path: Path) -> Store:
    """A store with the models "a" and "b"."""
    store = Store(tmp_path / "store", DeviceKey(bytes(32)))
    for name in ("a", "b"):
        store.add(MODEL, name, lambda _done, _total: None)
    return store


def contents(disk: StoreDisk, firmware: bytes = FIRMWARE) -> set[str]:
    """Return the names of what is there when a machine starts."""
    with FileBlocks(Path(f"/proc/self/fd/{disk.made_ready(firmware)}")) as blocks:
        return set(DiskImage(blocks).objects())


def put(disk: StoreDisk, *names: str) -> None:
    with FileBlocks(Path(f"/proc/self/fd/{disk.fd}")) as blocks:
        for name in names:
            DiskImage(blocks).put(name, b"", PIECES)


def file_of(models: Store) -> Path:
    return models.root / "images" / "inside.disk"


def test_it_takes_of_the_host_what_was_written_and_has_it_at_the_next_start(models: Store) -> None:
    kept = name_of("kv", models.manifest("a").model_id, "1")
    with StoreDisk(models.root) as disk:
        assert contents(disk) == set()
        put(disk, kept)
    assert file_of(models).stat().st_size == SIZE
    assert on_disk(file_of(models)) < MIB
    assert file_of(models).stat().st_mode & 0o777 == 0o600
    with StoreDisk(models.root) as disk:
        assert contents(disk) == {kept}


def test_what_models_take_of_it_is_counted(models: Store) -> None:
    model = models.manifest("a").model_id
    before = models.usage()["a"]
    with StoreDisk(models.root) as disk:
        contents(disk)
        put(disk, name_of("weights", model), name_of("kv", model, "1"), name_of("kv", model, "2"))
    after, other = models.usage()["a"], models.usage()["b"]
    assert 5000 < after.images - before.images < 6000
    assert 10_000 < after.kv - before.kv < 12_000
    assert (other.images, other.kv) == (0, 0)


def test_what_belongs_to_a_model_that_is_gone_goes_at_the_next_start(models: Store) -> None:
    ids = {name: models.manifest(name).model_id for name in ("a", "b")}
    with StoreDisk(models.root) as disk:
        contents(disk)
        put(disk, *(name_of("weights", each) for each in ids.values()))
        models.remove("a")
        assert contents(disk) == {name_of("weights", ids["b"])}


def test_the_host_has_the_room_of_what_is_gone_after_the_next_start(models: Store) -> None:
    kept, gone = (name_of("weights", models.manifest(name).model_id) for name in ("a", "b"))
    with StoreDisk(models.root) as disk:
        contents(disk)
        with FileBlocks(Path(f"/proc/self/fd/{disk.fd}")) as blocks:
            for name in (kept, gone):
                DiskImage(blocks).put(name, b"", [(os.urandom(SLOT), bytes(TAG))] * 4)
        assert on_disk(file_of(models)) > 8 * SLOT
        models.remove("b")
        assert contents(disk) == {kept}
        assert 4 * SLOT < on_disk(file_of(models)) < 6 * SLOT
        with FileBlocks(Path(f"/proc/self/fd/{disk.fd}")) as blocks:
            [piece, *_] = DiskImage(blocks).objects()[kept].pieces
            assert any(DiskImage(blocks).read(piece))
    assert file_of(models).stat().st_size == SIZE


def test_what_the_application_of_another_firmware_sealed_goes(models: Store) -> None:
    with StoreDisk(models.root) as disk:
        contents(disk)
        put(disk, name_of("weights", models.manifest("a").model_id))
        assert contents(disk, b"another firmware") == set()


@pytest.mark.parametrize("harm", [b"", b"FLEXDISK", b"\xff" * 2 * SLOT], ids=len)
def test_a_disk_that_is_damaged_is_made_anew(models: Store, harm: bytes) -> None:
    with StoreDisk(models.root) as disk:
        contents(disk)
        put(disk, name_of("weights", models.manifest("a").model_id))
    file_of(models).write_bytes(harm)
    with StoreDisk(models.root) as disk:
        assert contents(disk) == set()
        put(disk, "kv/x")
    assert file_of(models).stat().st_size == SIZE


def test_a_second_machine_has_an_empty_one_that_is_gone_with_it(models: Store) -> None:
    kept = name_of("kv", models.manifest("a").model_id, "1")
    with StoreDisk(models.root) as first:
        contents(first)
        put(first, kept)
        with StoreDisk(models.root) as second:
            assert (first.is_kept, second.is_kept) == (True, False)
            assert contents(second) == set()
            put(second, kept)
        assert [path.name for path in (models.root / "images").iterdir()] == ["inside.disk"]
        assert contents(first) == {kept}


def test_it_stays_taken_while_an_emulator_that_was_given_it_lives(models: Store) -> None:
    with StoreDisk(models.root) as disk:
        contents(disk)
        emulator = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, pass_fds=[disk.fd]
        )
    with StoreDisk(models.root) as second:
        assert os.fstat(second.fd).st_nlink == 0
    emulator.communicate()
    with StoreDisk(models.root) as again:
        assert os.fstat(again.fd).st_nlink == 1


def test_what_can_be_made_again_may_be_collected_while_a_machine_has_it(models: Store) -> None:
    with StoreDisk(models.root) as disk:
        contents(disk)
        put(disk, name_of("weights", models.manifest("a").model_id))
        assert models.collect(images=True, kv=False, unfinished=False) > 0
        assert not file_of(models).exists()
        assert len(contents(disk)) == 1
        with StoreDisk(models.root) as other:
            assert contents(other) == set()
            assert file_of(models).exists()


def test_a_link_is_not_followed_and_the_error_says_what_to_do(models: Store, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"mine")
    file_of(models).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NormalWorldError) as error, StoreDisk(models.root):
        pass
    assert error.value.hint
    assert (tmp_path / "elsewhere").read_bytes() == b"mine"


def test_a_disk_of_the_host_that_is_full_is_named(models: Store, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        (small / "filler").write_bytes(bytes(60 << 10))
        with pytest.raises(NormalWorldError) as error, StoreDisk(small / "store") as disk:
            disk.made_ready(FIRMWARE)
        assert error.value.code == "disk_full"
    finally:
        subprocess.run(["umount", small], check=True)
        shutil.rmtree(small)
