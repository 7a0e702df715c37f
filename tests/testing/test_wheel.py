"""The wheel: it has all that the package needs at run time, and works where there is no checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = (
    "src",
    "abi",
    "monitor",
    "secure-os",
    "trusted-app",
    "driver",
    "pyproject.toml",
    "setup.py",
    "requirements.lock",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)
MADE = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
BUILD = "from setuptools import build_meta; build_meta.build_wheel('dist')"
LOOK = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import flexserve
from flexserve.emulator.build import sources_folder
assert Path(flexserve.__file__).is_relative_to(sys.argv[1]), flexserve.__file__
print(sources_folder())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("tree")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, tree / part, ignore=MADE)
        else:
            shutil.copy(ROOT / part, tree / part)
    subprocess.run([sys.executable, "-c", BUILD], cwd=tree, check=True, capture_output=True, timeout=120)
    (made,) = (tree / "dist").glob("*.whl")
    return made


def test_it_has_every_file_of_the_package(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "src"
    files = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ".egg-info" not in str(path)
    ]
    assert [file for file in files if file not in packed] == []


def test_the_emulated_machine_is_built_from_what_the_wheel_has(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = [sys.executable, "-I", "-c", LOOK, str(tmp_path)]
    found = subprocess.run(program, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60)
    sources = Path(found.stdout.strip())
    assert sources.is_relative_to(tmp_path)
    for needed in ("abi/flex.toml", "monitor/Makefile", "secure-os/Makefile", "requirements.lock"):
        assert (sources / needed).is_file() == (ROOT / needed).is_file(), needed
    for folder in (
        *("monitor/core", "monitor/el3", "monitor/arch/aarch64", "driver/guest", "driver/flexnpu"),
        *("secure-os/core", "secure-os/arch/aarch64", "trusted-app", "trusted-app/tests"),
    ):
        assert [
            path.name
            for path in (ROOT / folder).glob("*.[chS]*")
            if not (sources / folder / path.name).is_file()
        ] == []
