from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from sample_models import CANARY, METADATA_CANARY, gguf_bytes, quiet

from flexserve.errors import CallerError, StoredDataError, UnknownModelError
from flexserve.trusted.store import BufferSpec, DeviceKey, ImageWriter, Store
from flexserve.trusted.store.files import NewFile


def names(store: Store) -> list[str]:
    return [manifest.name for manifest in store.list()]


def files(store: Store) -> list[str]:
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file())


def add_image(store: Store, name: str, fingerprint: str = "cpu") -> Path:
    with store.open(name) as sealed:
        path = store.derived.image_path(sealed.manifest, fingerprint)
        with ImageWriter(path, sealed, fingerprint, [BufferSpec("CPU", 5000)], 4096) as writer:
            writer.write(0, 0, memoryview(CANARY * 1000)[:4096])
            writer.write(0, 1, memoryview(CANARY * 1000)[:904])
            writer.finish()
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "Small Model (v1).gguf"
    path.write_bytes(gguf_bytes())
    return path


def test_models_are_added_listed_opened_verified_and_removed(store: Store, source: Path, small: Path):
    assert store.list() == []
    added = store.add(source, "b", quiet)
    store.add(small, "a", quiet)
    assert names(store) == ["a", "b"]
    assert store.list()[1] == added
    with store.open("b") as model:
        assert model.header().architecture == "llama"
    store.verify("b", quiet)
    assert store.remove("b") >= source.stat().st_size
    assert names(store) == ["a"]
    assert files(store) == ["models/a.flex"]


def test_a_manifest_is_verified_once_and_again_when_its_file_changed(
    store: Store, source: Path, small: Path, monkeypatch: pytest.MonkeyPatch
):
    store.add(small, "a", quiet)
    opened: list[str] = []
    open_ = store.open

    def opening(name: str):
        opened.append(name)
        return open_(name)

    monkeypatch.setattr(store, "open", opening)
    first = store.manifest("a")
    assert store.manifest("a") == first
    assert opened == ["a"]
    store.remove("a")
    with pytest.raises(UnknownModelError):
        store.manifest("a")
    other = store.add(source, "a", quiet)
    assert store.manifest("a") == other != first
    path = next((store.root / "models").iterdir())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoredDataError):
        store.manifest("a")


def test_a_store_is_private(store: Store):
    for folder in (store.root, *store.root.iterdir()):
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("folder", [".", "models", "images", "kv"])
def test_a_store_that_others_may_write_to_is_refused(store: Store, device: DeviceKey, folder: str):
    (store.root / folder).chmod(0o777)
    with pytest.raises(CallerError, match="chmod go-w") as caught:
        Store(store.root, device)
    assert caught.value.code == "store_unsafe"


def test_a_store_is_there_again_when_opened_again(store: Store, small: Path, device: DeviceKey):
    store.add(small, "a", quiet)
    assert names(Store(store.root, device)) == ["a"]


def test_a_model_without_a_name_is_named_after_its_file(store: Store, small: Path):
    assert store.add(small, None, quiet).name == "small-model-v1"


def test_a_file_whose_name_makes_no_name_needs_one(store: Store, small: Path):
    odd = small.rename(small.with_name("☃.gguf"))
    with pytest.raises(CallerError) as caught:
        store.add(odd, None, quiet)
    assert "--name" in caught.value.hint


def test_of_a_missing_file_without_a_usable_name_its_absence_is_told(store: Store, small: Path):
    with pytest.raises(CallerError, match="cannot be read: No such file"):
        store.add(small.with_name("*.gguf"), None, quiet)


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "A", "-a", ".a", "a" * 65, "a\n", "ä", "a b"])
def test_a_name_that_is_not_allowed_is_refused(store: Store, small: Path, name: str):
    with pytest.raises(CallerError) as caught:
        store.add(small, name, quiet)
    assert caught.value.code == "bad_name"
    for method in (store.open, store.remove):
        with pytest.raises(UnknownModelError):
            method(name)
    assert files(store) == []


def test_a_taken_name_is_refused_before_sealing(store: Store, small: Path, source: Path):
    store.add(small, "a", quiet)
    with pytest.raises(CallerError, match="already") as caught:
        store.add(source, "a", lambda done, total: pytest.fail("sealing began"))
    assert caught.value.code == "model_exists"
    assert store.list()[0].size == small.stat().st_size


def test_an_unknown_model_is_answered_with_the_known_ones(store: Store, small: Path):
    with pytest.raises(UnknownModelError) as caught:
        store.open("x")
    assert "flexserve add" in caught.value.hint
    store.add(small, "known", quiet)
    for use in (store.open, store.remove, lambda name: store.verify(name, quiet)):
        with pytest.raises(UnknownModelError) as caught:
            use("x")
        assert "known" in caught.value.hint


def test_a_damaged_model_does_not_hide_the_others_and_can_be_removed(store: Store, small: Path):
    store.add(small, "bad", quiet)
    store.add(small, "good", quiet)
    with (store.root / "models" / "bad.flex").open("r+b") as file:
        file.write(b"\0")
    assert names(store) == ["good"]
    assert list(store.damaged()) == ["bad"]
    with pytest.raises(StoredDataError):
        store.open("bad")
    store.remove("bad")
    assert store.damaged() == {}


def test_a_renamed_model_is_refused(store: Store, small: Path):
    store.add(small, "a", quiet)
    models = store.root / "models"
    (models / "a.flex").rename(models / "b.flex")
    assert store.list() == []
    with pytest.raises(StoredDataError, match="another name"):
        store.open("b")
    with pytest.raises(StoredDataError, match="another name"):
        store.verify("b", quiet)


def test_foreign_things_in_the_store_are_no_models(store: Store, small: Path, device: DeviceKey):
    store.add(small, "a", quiet)
    models = store.root / "models"
    (models / "Not A Name.flex").write_bytes(b"x")
    (models / "notes.txt").write_bytes(b"x")
    (models / ".flexserve-folder.tmp").mkdir()
    (models / "link.flex").symlink_to(models / "a.flex")
    assert names(Store(store.root, device)) == ["a"]
    assert list(store.damaged()) == ["link"]


def test_a_store_of_another_device_lists_nothing_and_loses_nothing(store: Store, small: Path, tmp_path: Path):
    store.add(small, "a", quiet)
    add_image(store, "a")
    before = files(store)
    other = Store(store.root, DeviceKey.load_or_create(tmp_path / "other" / "device.key"))
    assert other.list() == []
    assert other.damaged()["a"].code == "other_device"
    assert files(store) == before


def test_images_go_with_their_model(store: Store, small: Path):
    store.add(small, "a", quiet)
    store.add(small, "b", quiet)
    add_image(store, "a")
    kept = add_image(store, "b")
    store.remove("a")
    assert files(store) == [f"images/{kept.name}", "models/b.flex"]


def test_images_of_other_fingerprints_are_dropped_on_request(store: Store, small: Path):
    manifest = store.add(small, "a", quiet)
    old, new = add_image(store, "a", "old"), add_image(store, "a", "new")
    assert store.derived.images(manifest) == sorted([old, new])
    assert store.derived.drop_stale_images(manifest, "new") > 0
    assert store.derived.images(manifest) == [new]
    assert store.derived.drop_stale_images(manifest, "new") == 0


def test_what_a_world_inside_a_machine_made_goes_with_its_model_and_not_before(store: Store, small: Path):
    manifest = store.add(small, "a", quiet)
    made = [store.root / "images" / f"{manifest.model_id}-inside.img"]
    made.append(store.root / "kv" / f"{manifest.model_id}-inside-00.kv")
    for path in made:
        path.write_bytes(b"of the other one")
    assert store.derived.drop_stale_images(manifest, "new") == 0
    assert store.derived.usable_kv_paths(manifest) == []
    assert all(path.exists() for path in made)
    store.remove("a")
    assert files(store) == []


def test_orphaned_images_are_swept_when_the_store_is_opened(store: Store, small: Path, device: DeviceKey):
    store.add(small, "a", quiet)
    add_image(store, "a")
    (store.root / "models" / "a.flex").unlink()
    Store(store.root, device)
    assert files(store) == []


def test_images_are_kept_while_a_model_cannot_be_read(store: Store, small: Path, device: DeviceKey):
    store.add(small, "a", quiet)
    image = add_image(store, "a")
    with (store.root / "models" / "a.flex").open("r+b") as file:
        file.write(b"\0")
    Store(store.root, device)
    assert image.exists()
    store.remove("a")
    assert files(store) == []


def test_a_file_being_written_is_swept_by_nobody_else(store: Store, source: Path, device: DeviceKey):
    def meddle(done: int, total: int) -> None:
        Store(store.root, device)  # the same process
        if os.fork() == 0:
            try:
                Store(store.root, device)
            finally:
                os._exit(0)
        os.wait()

    store.add(source, "a", meddle)
    store.verify("a", quiet)


def test_the_file_of_a_dead_writer_is_swept(store: Store, device: DeviceKey):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            NewFile(store.root / "models" / "a.flex")
            os.write(writer, b"!")
            time.sleep(60)
        finally:
            os._exit(0)
    os.read(reader, 1)
    Store(store.root, device)
    assert len(files(store)) == 1, "a living writer's file was swept"
    os.kill(child, 9)
    os.waitpid(child, 0)
    Store(store.root, device)
    assert files(store) == []


def test_processes_that_add_the_same_name_at_once_leave_one_model(
    store: Store, small: Path, device: DeviceKey
):
    children = []
    for _ in range(6):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                Store(store.root, device).add(small, "a", quiet)
                status = 0
            except CallerError as error:
                status = 2 if error.code == "model_exists" else 3
            finally:
                os._exit(status)
        children.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert sorted(statuses) == [0, 2, 2, 2, 2, 2]
    store.verify("a", quiet)
    assert files(store) == ["models/a.flex"]


def test_nothing_in_the_store_is_in_clear(store: Store, source: Path, small: Path):
    store.add(source, "a", quiet)
    store.add(small, "b", quiet)
    add_image(store, "a")
    for path in store.root.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert CANARY not in data
            assert METADATA_CANARY.encode() not in data
