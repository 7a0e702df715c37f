"""The device key under a passphrase, and back on another machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexserve.errors import CallerError, StoredDataError
from flexserve.trusted.store import key_export
from flexserve.trusted.store.key_export import export_key, import_key
from flexserve.trusted.store.keys import DeviceKey

PASSPHRASE = "correct horse battery staple"


@pytest.fixture(autouse=True)
def cheap_derivation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_export, "_MEMORY", 64)


@pytest.fixture
def exported(tmp_path: Path) -> tuple[DeviceKey, Path]:
    key = DeviceKey.load_or_create(tmp_path / "here" / "device.key")
    assert export_key(tmp_path / "here" / "device.key", PASSPHRASE, tmp_path / "backup") == key.identity
    return key, tmp_path / "backup"


def test_what_was_exported_is_the_same_device_elsewhere(
    exported: tuple[DeviceKey, Path], tmp_path: Path
) -> None:
    key, backup = exported
    wrapped = key.wrap(b"model", bytes(range(32)))
    there = tmp_path / "there" / "device.key"
    assert import_key(backup, PASSPHRASE, there) == key.identity
    assert DeviceKey.load(there).unwrap(b"model", wrapped) == bytes(range(32))
    assert there.stat().st_mode & 0o777 == backup.stat().st_mode & 0o777 == 0o600


def test_the_exported_file_does_not_hold_the_key_in_clear(
    exported: tuple[DeviceKey, Path], tmp_path: Path
) -> None:
    root = (tmp_path / "here" / "device.key").read_bytes()
    _, backup = exported
    assert root not in key_export._read(backup)


def test_a_wrong_passphrase_or_a_changed_file_gives_no_key(
    exported: tuple[DeviceKey, Path], tmp_path: Path
) -> None:
    _, backup = exported
    there = tmp_path / "there" / "device.key"
    with pytest.raises(CallerError, match="passphrase"):
        import_key(backup, "another passphrase", there)
    text = backup.read_text()
    swapped = {"A": "B"}.get(text[80], "A")
    backup.write_text(text[:80] + swapped + text[81:])
    with pytest.raises(CallerError, match="passphrase"):
        import_key(backup, PASSPHRASE, there)
    assert not there.exists()


@pytest.mark.parametrize(
    "content", ["", "hello", "-----BEGIN FLEXSERVE DEVICE KEY-----\nAAAA\n", "\0" * 9000]
)
def test_a_file_that_is_no_exported_key_is_bad_data(tmp_path: Path, content: str) -> None:
    (tmp_path / "backup").write_text(content)
    with pytest.raises(StoredDataError, match="key export"):
        import_key(tmp_path / "backup", PASSPHRASE, tmp_path / "device.key")


def test_a_key_and_a_file_that_exist_are_kept(exported: tuple[DeviceKey, Path], tmp_path: Path) -> None:
    _, backup = exported
    before = backup.read_bytes()
    here = tmp_path / "here" / "device.key"
    with pytest.raises(CallerError, match="exists"):
        export_key(here, PASSPHRASE, backup)
    assert backup.read_bytes() == before
    other = DeviceKey.load_or_create(tmp_path / "other.key")
    with pytest.raises(CallerError, match="Move it away") as refusal:
        import_key(backup, PASSPHRASE, tmp_path / "other.key")
    assert refusal.value.code == "device_key_exists"
    assert DeviceKey.load(tmp_path / "other.key").identity == other.identity


@pytest.mark.parametrize("passphrase", ["", "short", "x" * 2000])
def test_a_passphrase_that_is_guessed_soon_is_refused(tmp_path: Path, passphrase: str) -> None:
    DeviceKey.load_or_create(tmp_path / "device.key")
    with pytest.raises(CallerError, match="12 to"):
        export_key(tmp_path / "device.key", passphrase, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()
