"""What includes what, in the monitor and the drivers: no header needs itself."""

from __future__ import annotations

import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("monitor", "driver", "abi")
SEARCHED = ("monitor", "abi")  # for `#include "..."`, after the folder of the file itself


def included(path: Path, root: Path) -> set[Path]:
    """Return the files below `root` that a file includes, without those of the system and of the kernel."""
    names = re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE)
    places = [path.parent, *(root / folder for folder in SEARCHED)]
    found = ((place / name).resolve() for name in names for place in places)
    return {file for file in found if file.is_file()}


def graph(root: Path) -> dict[Path, set[Path]]:
    """Return for each C source and header below the folders what it includes."""
    sources = (path for folder in FOLDERS for path in (root / folder).rglob("*.[chS]"))
    return {path: included(path, root) for path in sources if "build" not in path.parts}


def test_no_file_includes_itself_by_way_of_others():
    found = graph(ROOT)
    assert sum(map(len, found.values())) > len(found), "nothing was looked at"
    graphlib.TopologicalSorter(found).prepare()  # CycleError tells the files of a cycle


def test_a_cycle_is_found(tmp_path: Path):
    for name, other in (("a.h", "b.h"), ("b.h", "a.h")):
        (tmp_path / "driver").mkdir(exist_ok=True)
        (tmp_path / "driver" / name).write_text(f'#include "{other}"\n')
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph(tmp_path.resolve())).prepare()
