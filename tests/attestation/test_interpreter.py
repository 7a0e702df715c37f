"""Programs of the secure world run what stands in their sources, which is what is measured."""

from __future__ import annotations

import marshal
import os
import py_compile
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from flexserve import interpreter
from flexserve.normal.process import environment, program_command
from flexserve.platforms.linux import companion
from flexserve.trusted.sidecar import Sidecar

USUAL = "import sys, runpy; sys.path.append(sys.argv[1]); runpy.run_module(sys.argv[2])"
RUN = f"import sys; from flexserve import interpreter; interpreter.load_from_sources(sys.argv[3]); {USUAL}"
FOR_SOURCES = interpreter.OPTIONS[:3]


def said(options: tuple[str, ...], program: str, folder: Path, module: str = "victim") -> str:
    """Return what a module of `folder` prints, or the last line of the error."""
    kept = folder.parent / "kept"
    command = [sys.executable, *options, "-c", program, str(folder), module, str(kept)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return (ended.stdout or ended.stderr.splitlines()[-1]).strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a program that imports a module, whose compiled copy is poisoned."""
    (tmp_path / "victim.py").write_text("import library\n")
    source = tmp_path / "library.py"
    source.write_text("print('measured')\n")
    copy = Path(py_compile.compile(str(source), doraise=True) or "")
    header = copy.read_bytes()[:16]  # which names the source's size and time
    copy.write_bytes(header + marshal.dumps(compile("print('poisoned')", str(source), "exec")))
    return tmp_path


def test_a_poisoned_copy_runs_in_the_usual_interpreter_and_not_in_the_secure_worlds(folder: Path):
    assert said(("-I",), USUAL, folder) == "poisoned"
    assert said(FOR_SOURCES, USUAL, folder) == "measured", "where nothing is kept, and before it is used"
    assert said(FOR_SOURCES, RUN, folder) == "measured"


def test_neither_archives_nor_compiled_files_without_a_source_are_imported(folder: Path):
    (folder / "victim.py").unlink()
    py_compile.compile(str(folder / "library.py"), cfile=str(folder / "victim.pyc"))
    assert said(FOR_SOURCES, USUAL, folder) == "measured"
    assert "No module named victim" in said(FOR_SOURCES, RUN, folder)
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr("victim.py", "print('from an archive')")
    assert said(FOR_SOURCES, USUAL, folder / "archive.zip") == "from an archive"
    assert "No module named victim" in said(FOR_SOURCES, RUN, folder / "archive.zip")


def test_every_program_of_a_secure_world_is_started_so(monkeypatch: pytest.MonkeyPatch):
    started: list[list[str]] = []

    class Process:
        def __init__(self, words: list[str], *, env: dict[str, str], **_: object) -> None:
            started.append(words)
            assert not env
            self.pid = 1

    monkeypatch.setattr(subprocess, "Popen", Process)
    Sidecar("a.helper").socket.close()
    words = program_command(["--channel-fd", "3"])
    assert words[: 2 * 7] == companion.command(interpreter.command("flexserve.secure_world.main"))
    for each in (words, words[7:], *started):
        assert each[:6] == [sys.executable, *interpreter.OPTIONS]


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "GGML_BACKEND_PATH"]
)
def test_no_variable_of_who_starts_it_reaches_a_secure_world(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, "/somewhere")
    assert name not in environment()


class TestKeptCode:
    """What was compiled is used again for the same source only."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        path = tmp_path / "module.py"
        path.write_text("VALUE = 1\n")
        return path

    @pytest.fixture
    def kept(self, tmp_path: Path) -> Path:
        folder = tmp_path / "kept"
        folder.mkdir(mode=0o700)
        return folder

    def value(self, source: Path, kept: Path) -> object:
        names: dict[str, object] = {}
        exec(interpreter.KeptLoader(str(kept), "module", str(source)).get_code("module"), names)
        return names["VALUE"]

    def test_the_same_source_is_compiled_once(
        self, source: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
    ):
        assert self.value(source, kept) == 1
        monkeypatch.setattr(interpreter.KeptLoader, "source_to_code", None, raising=False)
        assert self.value(source, kept) == 1

    def test_another_source_of_the_same_size_and_time_is_compiled_anew(self, source: Path, kept: Path):
        before = source.stat()
        assert self.value(source, kept) == 1
        source.write_text("VALUE = 2\n")
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert self.value(source, kept) == 2

    @pytest.mark.parametrize("left", [0, 10, 40])
    def test_a_damaged_file_is_made_anew(self, source: Path, kept: Path, left: int):
        assert self.value(source, kept) == 1
        (file,) = kept.iterdir()
        whole = file.read_bytes()
        file.write_bytes(whole[:left])
        assert self.value(source, kept) == 1
        assert file.read_bytes() == whole

    def test_code_of_another_python_is_not_run(
        self, source: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
    ):
        assert self.value(source, kept) == 1
        (file,) = kept.iterdir()
        before = file.read_bytes()
        monkeypatch.setattr(interpreter, "_FORMAT", b"another")
        assert self.value(source, kept) == 1
        assert file.read_bytes()[:32] != before[:32]

    def test_where_nothing_can_be_written_everything_runs_all_the_same(self, source: Path, tmp_path: Path):
        assert self.value(source, tmp_path / "nowhere") == 1

    def test_a_folder_that_others_can_enter_is_not_used(self, kept: Path):
        kept.chmod(0o755)
        hooks = list(sys.path_hooks)
        with pytest.raises(PermissionError):
            interpreter.load_from_sources(str(kept))
        assert sys.path_hooks == hooks
