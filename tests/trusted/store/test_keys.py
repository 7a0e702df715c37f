from __future__ import annotations

import os
import pickle
import stat
from pathlib import Path

import pytest

from flexserve.errors import CallerError, StoredDataError
from flexserve.trusted.store import DeviceKey

MODEL = bytes(16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "folder" / "device.key"


def test_a_created_key_is_private_and_is_the_same_key_when_loaded(path: Path):
    created = DeviceKey.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.stat().st_size == 32
    assert DeviceKey.load_or_create(path).identity == created.identity
    assert DeviceKey.load(path).unwrap(MODEL, created.wrap(MODEL, b"k" * 32)) == b"k" * 32
    assert os.listdir(path.parent) == ["device.key"]


def test_two_devices_have_different_keys(tmp_path: Path):
    one, two = (DeviceKey.load_or_create(tmp_path / name / "device.key") for name in "ab")
    assert one.identity != two.identity
    with pytest.raises(StoredDataError, match="another device"):
        two.unwrap(MODEL, one.wrap(MODEL, b"k" * 32))
    with pytest.raises(StoredDataError, match="not this device's"):
        two.verify(b"data", one.sign(b"data"))


def test_load_does_not_create(path: Path):
    with pytest.raises(CallerError) as caught:
        DeviceKey.load(path)
    assert caught.value.code == "device_key_missing"
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_a_key_that_others_may_access_is_refused(path: Path, mode: int):
    DeviceKey.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(CallerError, match="others may access it") as caught:
        DeviceKey.load_or_create(path)
    assert caught.value.code == "device_key_unsafe"
    assert "chmod 600" in caught.value.hint


def test_a_folder_in_which_others_may_write_is_refused(path: Path):
    DeviceKey.load_or_create(path)
    path.parent.chmod(0o770)
    with pytest.raises(CallerError, match="others may replace"):
        DeviceKey.load(path)


def test_a_symbolic_link_is_refused(path: Path, tmp_path: Path):
    DeviceKey.load_or_create(path)
    link = tmp_path / "link.key"
    link.symlink_to(path)
    with pytest.raises(CallerError, match="symbolic link"):
        DeviceKey.load_or_create(link)


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33, b"x" * 100])
def test_a_key_of_the_wrong_size_is_refused_and_kept(path: Path, content: bytes):
    DeviceKey.load_or_create(path)
    path.write_bytes(content)
    with pytest.raises(StoredDataError, match="32 bytes"):
        DeviceKey.load_or_create(path)
    assert path.read_bytes() == content


def test_a_pipe_in_place_of_the_key_is_refused_without_hanging(path: Path):
    DeviceKey.load_or_create(path)
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(CallerError, match="not a regular file"):
        DeviceKey.load_or_create(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_key_of_another_user_is_refused(path: Path):
    DeviceKey.load_or_create(path)
    os.chown(path, 12345, -1)
    with pytest.raises(CallerError, match="another user"):
        DeviceKey.load(path)


@pytest.mark.parametrize("position", range(60))
def test_a_wrapped_key_with_any_byte_changed_does_not_unwrap(position: int):
    device = DeviceKey(bytes(32))
    wrapped = bytearray(device.wrap(MODEL, b"k" * 32))
    wrapped[position] ^= 1
    with pytest.raises(StoredDataError):
        device.unwrap(MODEL, bytes(wrapped))


def test_a_key_wrapped_for_one_model_does_not_unwrap_for_another():
    device = DeviceKey(bytes(32))
    with pytest.raises(StoredDataError):
        device.unwrap(b"\1" * 16, device.wrap(MODEL, b"k" * 32))


@pytest.mark.parametrize("wrapped", [b"", b"x" * 59, b"x" * 61])
def test_a_wrapped_key_of_the_wrong_length_does_not_unwrap(wrapped: bytes):
    with pytest.raises(StoredDataError):
        DeviceKey(bytes(32)).unwrap(MODEL, wrapped)


def test_a_key_neither_prints_nor_pickles():
    device = DeviceKey(b"\x5a" * 32)
    assert "5a5a" not in repr(device)
    assert "ZZZZ" not in repr(device)
    with pytest.raises(TypeError):
        pickle.dumps(device)


def test_processes_that_create_the_key_at_once_agree_on_it(path: Path):
    readers = []
    for _ in range(8):
        reader, writer = os.pipe()
        if os.fork() == 0:
            try:
                os.write(writer, DeviceKey.load_or_create(path).identity.encode())
            finally:
                os._exit(0)
        os.close(writer)
        readers.append(reader)
    identities = set()
    for reader in readers:
        with os.fdopen(reader, "rb") as pipe:
            identities.add(pipe.read().decode())
        os.wait()
    assert identities == {DeviceKey.load(path).identity}
    assert os.listdir(path.parent) == ["device.key"]
