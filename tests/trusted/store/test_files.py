from __future__ import annotations

import os
from pathlib import Path

import pytest

from flexserve.errors import StoredDataError
from flexserve.trusted.store.files import NewFile, make_folder, read_exact, sweep, write_all


def test_short_writes_and_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def short_write(fd: int, parts: list[memoryview], offset: int) -> int:
        return os.pwrite(fd, bytes(b"".join(parts))[:3], offset)

    def short_read(fd: int, parts: list[memoryview], offset: int) -> int:
        first = next(part for part in parts if len(part))
        data = os.pread(fd, min(2, len(first)), offset)
        first[: len(data)] = data
        return len(data)

    monkeypatch.setattr(os, "pwritev", short_write)
    monkeypatch.setattr(os, "preadv", short_read)
    with NewFile(tmp_path / "x") as file:
        write_all(file.fd, [memoryview(b"hello "), memoryview(b""), memoryview(b"world")], 4)
        first, second = bytearray(7), bytearray(4)
        read_exact(file.fd, [memoryview(first), memoryview(second)], 4, "x")
        assert (bytes(first), bytes(second)) == (b"hello w", b"orld")
        with pytest.raises(StoredDataError, match="ends early"):
            read_exact(file.fd, [memoryview(bytearray(2))], 14, "x")


def test_a_file_swept_before_it_was_locked_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = os.lockf
    swept = []

    def lockf(fd: int, command: int, length: int) -> None:
        if not swept:
            swept.extend(tmp_path.iterdir())
            swept[0].unlink()  # what another process does that sweeps right now
        real(fd, command, length)

    monkeypatch.setattr(os, "lockf", lockf)
    with NewFile(tmp_path / "x") as file:
        write_all(file.fd, [memoryview(b"whole")], 0)
        file.publish()
    assert len(swept) == 1
    assert (tmp_path / "x").read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["x"]


def test_sweeping_leaves_everything_else_alone(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"x")
    (tmp_path / ".flexserve-0123.tmp").write_bytes(b"left over")
    (tmp_path / "flexserve-0123.tmp").write_bytes(b"someone's")
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["flexserve-0123.tmp", "x"]


def test_making_a_folder_leaves_existing_ones_as_they_are(tmp_path: Path):
    (tmp_path / "open").mkdir(mode=0o755)
    make_folder(tmp_path / "open" / "a" / "b")
    make_folder(tmp_path / "open" / "a" / "b")
    modes = [(tmp_path / "open" / name).stat().st_mode & 0o777 for name in ("", "a", "a/b")]
    assert modes == [0o755, 0o700, 0o700]
