"""How the trusted application of S-EL0 is built: from what, and when anew. Nothing is compiled here."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from flexserve.emulator import tools, trusted_app
from flexserve.emulator.images import images_for
from flexserve.emulator.packages import require_room
from flexserve.errors import FlexServeError, InternalError, NormalWorldError


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


def test_who_runs_the_application_builds_no_programs_of_its_tests(
    compiler: dict[str, str], tmp_path: Path
) -> None:
    trusted_app.record(tmp_path)
    assert trusted_app.built(tmp_path) is not None
    assert trusted_app.built(tmp_path, for_tests=True) is None
    trusted_app.record(tmp_path, for_tests=True)
    assert trusted_app.built(tmp_path) == trusted_app.built(tmp_path, for_tests=True) is not None


def test_a_record_that_broke_off_counts_for_nothing(compiler: dict[str, str], tmp_path: Path) -> None:
    trusted_app.record(tmp_path)
    (record,) = tmp_path.rglob("inputs")
    record.write_text("")
    assert trusted_app.built(tmp_path) is None


def test_how_far_llama_cpp_is_built_is_said_ten_times(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parts = [f"g++ -c {number}.cpp -o {number}.o\n" for number in range(40)]

    def follow(*_words: str, heard: Callable[[str], None], seconds: float) -> None:
        for line in ("mkdir -p ggml\n", *parts):
            heard(line)

    said: list[str] = []
    monkeypatch.setattr(tools, "run", lambda *_words: "".join(parts))
    monkeypatch.setattr(tools, "follow", follow)
    trusted_app.build_library(tmp_path / "llama.cpp", tmp_path, said.append)
    assert "40 parts, about 6 minutes on two cores" in said[0]
    assert said[1:] == [f"building llama.cpp: part {number} of 40" for number in range(4, 41, 4)]


def test_what_is_built_of_llama_cpp_is_not_announced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[str] = []
    monkeypatch.setattr(tools, "run", lambda *_words: "make: Nothing to be done for 'library'.\n")
    monkeypatch.setattr(tools, "follow", lambda *_words, **_options: None)
    trusted_app.build_library(tmp_path / "llama.cpp", tmp_path, said.append)
    assert said == []


def refusal(*, inside: bool = True) -> FlexServeError:
    """Return what keeps a machine from being made."""
    with pytest.raises(FlexServeError) as refused:
        images_for(ram_bytes=512 << 20, cpus=2, progress=lambda _what: None, inside=inside)
    return refused.value


def test_all_missing_programs_are_named_once_with_the_command_that_brings_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _program: None)
    refused = refusal()
    assert isinstance(refused, tools.MissingToolError)
    assert refused.message.count("aarch64-linux-gnu-gcc") == 1
    assert "aarch64-linux-gnu-g++" in refused.message
    assert "qemu-system-aarch64" in refused.message
    assert "apt-get install" in refused.hint
    assert "g++-aarch64-linux-gnu" in refused.hint


def test_what_keeps_the_application_from_being_built_says_what_works_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _program: None)
    assert "--secure-world host" in refusal().hint
    without = refusal(inside=False)
    assert "--secure-world" not in without.hint
    assert "g++" not in without.message


def test_sources_that_do_not_come_are_an_error_with_what_pip_said_and_not_what_it_was_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(*words: str | Path, **_options: object) -> str:
        raise InternalError(f"`{' '.join(map(str, words))}` failed:\n  ERROR: nobody answers\n")

    monkeypatch.setattr(tools, "run", run)
    with pytest.raises(NormalWorldError) as refused:
        trusted_app._fetch("llama.cpp", "llama-cpp-python==1", tmp_path / "out" / "llama.cpp", "/", ("",))
    assert refused.value.message == "pip could not fetch llama.cpp's sources:\n  ERROR: nobody answers"
    assert "network" in refused.value.hint
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_that_is_too_full_is_an_error_before_anything_is_fetched(tmp_path: Path) -> None:
    require_room(tmp_path, 4096, "a machine")
    with pytest.raises(NormalWorldError) as refused:
        require_room(tmp_path, 1 << 60, "a machine")
    assert refused.value.code == "disk_full"
    assert f"{tmp_path} has" in refused.value.message
    assert "XDG_CACHE_HOME" in refused.value.hint
