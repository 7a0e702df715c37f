"""How the trusted application of S-EL0 is built: from what, and when anew. Nothing is compiled here."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from flexserve.emulator import tools, trusted_app


def test_only_the_parts_that_are_built_leave_the_archive(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in (
            "src/llama.cpp",
            "tools/server.cpp",
            "ggml/src/ggml.c",
            "src/../../../../out",
            "README.md",
        ):
            member = tarfile.TarInfo(f"llama_cpp_python-1/vendor/llama.cpp/{name}")
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
        link = tarfile.TarInfo("llama_cpp_python-1/vendor/llama.cpp/src/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    packed.seek(0)
    with tarfile.open(fileobj=packed) as archive:
        trusted_app.extract(archive, tmp_path / "llama.cpp")
    files = [path for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()]
    assert sorted(str(path.relative_to(tmp_path)) for path in files) == [
        "llama.cpp/ggml/src/ggml.c",
        "llama.cpp/src/llama.cpp",
    ]


def test_the_source_distribution_is_pinned_by_its_hash() -> None:
    pin = trusted_app.pin()
    assert pin.startswith("llama-cpp-python==")
    assert "--hash=sha256:" in pin
    assert "\n" not in pin.strip()


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A compiler of which only the version matters."""
    said = {"version": "g++ 12"}
    monkeypatch.setattr(tools, "run", lambda *_words, **_options: said["version"])
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    return said


def test_what_was_built_of_other_sources_does_not_count(compiler: dict[str, str], tmp_path: Path) -> None:
    assert trusted_app.built(tmp_path) is None
    trusted_app.record(tmp_path)
    programs = trusted_app.built(tmp_path)
    assert programs is not None
    assert programs.application.parent == programs.plain.parent
    compiler["version"] = "g++ 13"
    assert trusted_app.built(tmp_path) is None
