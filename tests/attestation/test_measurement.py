"""What a secure world consists of, measured: the same wherever it lies, another when anything in it is."""

from __future__ import annotations

import compileall
import shutil
from pathlib import Path

import pytest

from flexserve.attestation.measurement import Measurement, measure


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    return install(tmp_path / "here")


def install(folder: Path) -> Path:
    """Return a folder of packages as an installer leaves it, which says in many places where it lies."""
    notes = folder / "package-1.0.dist-info"
    for each in (folder / "package", folder / "llama_cpp" / "lib", notes):
        each.mkdir(parents=True)
    (folder / "package" / "__init__.py").write_text("VALUE = 1\n")
    (folder / "package" / "data.txt").write_text("some data\n")
    (folder / "llama_cpp" / "lib" / "libllama.so").write_bytes(b"\x7fELF")
    (notes / "RECORD").write_text(f"../../bin/tool,{folder}\n")
    (notes / "direct_url.json").write_text(f'{{"url": "file://{folder}"}}')
    (notes / "entry_points.txt").write_text("[console_scripts]\ntool = package:main\n")
    (folder / "editable.pth").write_text(f"{folder}/elsewhere\n")
    (folder / "start.pth").write_text("import os\n")
    return folder


def parts(folder: Path) -> dict[str, bytes]:
    return measure([str(folder)]).parts


def test_two_installations_in_two_folders_have_the_same_digests(installation: Path, tmp_path: Path):
    there = install(tmp_path / "there" / "deep")
    compileall.compile_dir(there, quiet=2)
    assert parts(there) == parts(installation)


def test_an_installation_that_was_compiled_has_the_same_digests(installation: Path):
    before = parts(installation)
    compileall.compile_dir(installation, quiet=2)
    assert parts(installation) == before


@pytest.mark.parametrize(
    ("part", "file", "content"),
    [
        ("packages", "package/__init__.py", "VALUE = 2\n"),
        ("packages", "package/data.txt", "other data\n"),
        ("packages", "package/new.py", ""),
        ("packages", "start.pth", "import os, package\n"),
        ("packages", "new.pth", "import package\n"),
        ("packages", "package-1.0.dist-info/entry_points.txt", "[x]\n"),
        ("engine", "llama_cpp/lib/libllama.so", "\x7fELG"),
        ("engine", "llama_cpp/__init__.py", ""),
    ],
)
def test_whatever_can_run_changes_the_digest_of_its_part_and_no_other(
    installation: Path, part: str, file: str, content: str
):
    before = parts(installation)
    (installation / file).write_text(content)
    after = parts(installation)
    assert {name for name in before if before[name] != after[name]} == {part}


def test_a_file_that_moves_changes_the_digest(installation: Path):
    before = parts(installation)
    shutil.move(installation / "package" / "data.txt", installation / "package" / "date.txt")
    assert parts(installation) != before


def test_two_files_cannot_pass_for_one_another(installation: Path):
    before = parts(installation)
    first, second = installation / "package" / "__init__.py", installation / "package" / "data.txt"
    one, other = first.read_text(), second.read_text()
    first.write_text(other)
    second.write_text(one)
    assert parts(installation) != before


def test_the_last_change_of_any_file_is_known_whatever_its_own_time_says(installation: Path):
    import os

    before = measure([str(installation)]).changed
    path = installation / "package" / "__init__.py"
    path.write_text("VALUE = 3\n")
    os.utime(path, (0, 0))
    assert measure([str(installation)]).changed >= before


def test_a_measurement_has_a_digest_of_64_bytes_for_each_part(installation: Path):
    found = measure([str(installation)])
    assert isinstance(found, Measurement)
    assert set(found.parts) == {"python", "engine", "packages"}
    assert {len(digest) for digest in found.parts.values()} == {64}
