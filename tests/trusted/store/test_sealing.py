from __future__ import annotations

import errno
import os
import resource
import subprocess
from pathlib import Path

import pytest
from sample_models import quiet

from flexserve.errors import CallerError, NormalWorldError
from flexserve.trusted.store import DeviceKey, seal_file, sealing
from flexserve.trusted.store.manifest import CHUNK


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "x.flex"


def test_a_file_that_is_no_gguf_is_the_callers_error(tmp_path: Path, target: Path, device: DeviceKey):
    (tmp_path / "x.gguf").write_bytes(b"hello")
    with pytest.raises(CallerError):
        seal_file(tmp_path / "x.gguf", target, "x", device, quiet)
    assert os.listdir(target.parent) == []


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device"])
def test_a_source_that_is_no_file_is_the_callers_error(
    tmp_path: Path, target: Path, device: DeviceKey, kind: str
):
    path = tmp_path / "x.gguf"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/zero")
    with pytest.raises(CallerError):
        seal_file(path, target, "x", device, quiet)
    assert os.listdir(target.parent) == []


@pytest.mark.parametrize("change", ["grow", "shrink", "touch"])
def test_a_source_that_changes_meanwhile_is_refused(
    source: Path, target: Path, device: DeviceKey, change: str
):
    def meddle(done: int, total: int) -> None:
        match change:
            case "grow":
                source.write_bytes(source.read_bytes() + b"more")
            case "shrink":
                os.truncate(source, total - 100_000)
            case "touch":
                os.utime(source, ns=(1, 1))

    with pytest.raises(CallerError, match="changed while"):
        seal_file(source, target, "x", device, meddle)
    assert os.listdir(target.parent) == []


def test_an_existing_destination_is_never_overwritten(source: Path, target: Path, device: DeviceKey):
    def meddle(done: int, total: int) -> None:
        target.write_bytes(b"was here first")

    with pytest.raises(CallerError) as caught:
        seal_file(source, target, "x", device, meddle)
    assert caught.value.code == "model_exists"
    assert os.listdir(target.parent) == ["x.flex"]
    assert target.read_bytes() == b"was here first"


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, CallerError])
def test_an_interrupted_sealing_leaves_nothing(
    source: Path, target: Path, device: DeviceKey, error: type[BaseException]
):
    def stop(done: int, total: int) -> None:
        raise error("stop")

    with pytest.raises(error):
        seal_file(source, target, "x", device, stop)
    assert os.listdir(target.parent) == []


def test_a_disk_known_to_be_too_small_is_refused_before_anything_is_written(
    source: Path, target: Path, device: DeviceKey, monkeypatch: pytest.MonkeyPatch
):
    stats = list(os.statvfs(target.parent))
    stats[4] = 10  # blocks available
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(stats))
    monkeypatch.setattr(sealing, "NewFile", None)
    with pytest.raises(NormalWorldError, match="disk is full") as caught:
        seal_file(source, target, "x", device, quiet)
    assert caught.value.code == "disk_full"
    assert "MiB" in caught.value.hint


@pytest.mark.parametrize("call", ["pwritev", "fsync", "fdatasync", "link"])
@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "disk_full"), (errno.EDQUOT, "disk_full"), (errno.EIO, "disk_failed")]
)
def test_a_disk_that_fails_meanwhile_is_named_and_nothing_is_left(
    source: Path,
    target: Path,
    device: DeviceKey,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    code: str,
):
    real = getattr(os, call)
    calls = 0

    def fail(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2 or call != "pwritev":
            raise OSError(number, os.strerror(number))
        return real(*arguments, **named)

    monkeypatch.setattr(sealing, "_FLUSH_EVERY", 2)
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(NormalWorldError) as caught:
        seal_file(source, target, "x", device, quiet)
    assert caught.value.code == code
    assert os.listdir(target.parent) == []


def test_a_real_limit_on_the_file_size_is_a_full_disk(source: Path, target: Path, device: DeviceKey):
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (CHUNK + CHUNK // 2, CHUNK + CHUNK // 2))
            seal_file(source, target, "x", device, quiet)
        except NormalWorldError as error:
            os.write(writer, error.code.encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.wait()
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"disk_full"
    assert os.listdir(target.parent) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_is_really_full_leaves_nothing(
    source: Path, target: Path, device: DeviceKey, monkeypatch: pytest.MonkeyPatch
):
    folder = str(target.parent)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", folder], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(NormalWorldError) as caught:
            seal_file(source, target, "x", device, lambda done, total: pytest.fail("sealing began"))
        assert caught.value.code == "disk_full"
        # The same when the room is lost only after it was checked.
        monkeypatch.setattr(sealing, "require_room", lambda *arguments: None)
        with pytest.raises(NormalWorldError) as caught:
            seal_file(source, target, "x", device, quiet)
        assert caught.value.code == "disk_full"
        assert os.listdir(folder) == []
    finally:
        subprocess.run(["umount", folder], check=True)
