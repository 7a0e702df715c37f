"""What a secure world consists of, measured: the same wherever it lies, another when anything in it is."""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flexserve import interpreter
from flexserve.attestation import measurement
from flexserve.attestation.measurement import Measurement

PACKAGE = Path(measurement.__file__).parents[1]


def measure(roots: list[str]) -> Measurement:
    """What a process of this test's could import: of the secure world's programs it has mapped none."""
    return measurement.measure(roots, programs=())


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
        ("packages", "package/new.pyc", ""),
        ("packages", "package-1.0.dist-info/sitecustomize.py", ""),
        ("packages", "start.pth", "import os, package\n"),
        ("packages", "new.pth", "import package\n"),
        ("packages", "new.pth", "import\tpackage\n"),
        ("packages", "new.pth", "\ufeffimport package\n"),
        ("packages", "new.pth", "folder\x0cimport package\n"),
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


def test_which_of_two_modules_is_imported_counts(installation: Path, tmp_path: Path):
    before = measure([str(installation)]).parts
    other = install(tmp_path / "other")
    (other / "package" / "__init__.py").write_text("VALUE = 2\n")
    first, second = (measure([str(one), str(two)]).parts for one, two in _orders(installation, other))
    assert first != second
    assert before not in (first, second)


def _orders(*folders: Path) -> list[tuple[Path, ...]]:
    return [folders, folders[::-1]]


def test_a_folder_within_a_package_that_can_be_imported_from_counts(installation: Path):
    assert measure([str(installation), str(installation / "package")]).parts != parts(installation)


def test_compiled_files_count_in_a_folder_that_is_imported_from(installation: Path):
    folder = installation / "package" / "__pycache__"
    folder.mkdir()
    roots = [str(installation), str(folder)]
    before = measure(roots).parts
    (folder / "sitecustomize.pyc").write_bytes(b"")
    assert parts(installation) == before
    assert measure(roots).parts != before


def test_an_archive_on_the_import_path_counts(installation: Path, tmp_path: Path):
    archive = tmp_path / "python.zip"
    archive.write_bytes(b"PK")
    assert measure([str(archive), str(installation)]).parts != parts(installation)


def test_the_library_that_holds_the_interpreter_counts():
    named = {name: path for part, name, path in measurement._mapped([]) if part == "python"}
    assert named["python"] == os.path.realpath(sys.executable)
    with open("/proc/self/maps") as mappings:
        shared = "libpython" in mappings.read()
    assert any(name.startswith("libpython") for name in named) == shared


def test_the_c_library_and_its_loader_count_and_no_file_below_the_import_path_does_twice():
    libraries = {name: path for part, name, path in measurement._mapped(sys.path) if part == "libraries"}
    assert any(name.startswith("libc") for name in libraries)
    assert any(name.startswith("ld") for name in libraries)
    assert not any(path.startswith(tuple(filter(None, sys.path))) for path in libraries.values())


def test_a_library_that_a_program_maps_counts(installation: Path, tmp_path: Path):
    library = tmp_path / "another.so"
    shutil.copy(next(path for _, name, path in measurement._mapped([]) if name.startswith("libc")), library)
    code = (
        "import ctypes, sys\nfrom flexserve.attestation import measurement as m\n"
        "print(m.measure([], programs=()).parts['libraries'].hex())\n"
        "import mmap\nfile = open(sys.argv[1], 'rb')\n"
        "kept = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_EXEC)\n"
        "print(m.measure([], programs=()).parts['libraries'].hex())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code, str(library)], capture_output=True, text=True, check=True
    ).stdout
    before, after = printed.split()
    assert before != after


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
    before = measure([str(installation)]).changed
    path = installation / "package" / "__init__.py"
    path.write_text("VALUE = 3\n")
    os.utime(path, (0, 0))
    assert measure([str(installation)]).changed >= before


def test_a_measurement_has_a_digest_of_64_bytes_for_each_part(installation: Path):
    found = measure([str(installation)])
    assert isinstance(found, Measurement)
    assert set(found.parts) == {"python", "libraries", "engine", "packages"}
    assert {len(digest) for digest in found.parts.values()} == {64}


MEASURE = (
    "import sys; sys.path.insert(0, sys.argv[1]); from flexserve.attestation.measurement import measure; "
    "print(measure(sys.argv[1:], programs=()).parts['flexserve'].hex())"
)


def digest_of_copy(folder: Path) -> str:
    command = [sys.executable, *interpreter.OPTIONS[:3], "-c", MEASURE, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_two_copies_of_this_package_have_the_same_digest_wherever_they_lie(tmp_path: Path):
    places = [tmp_path / "a", tmp_path / "another" / "place"]
    for place in places:
        shutil.copytree(PACKAGE, place / "flexserve")
    first, second = map(digest_of_copy, places)
    assert first == second
    with (places[1] / "flexserve" / "units.py").open("a") as file:
        file.write("\n")
    assert digest_of_copy(places[1]) != first
