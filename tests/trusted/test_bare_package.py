"""A module of a package is imported without the package, until somebody asks the package for something."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexserve.trusted.bare_package import put_in_place

FILLED = "made_up.filled"  # what the package imports


@pytest.fixture(autouse=True)
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that imports a part and more."""
    folder = tmp_path / "made_up"
    folder.mkdir()
    (folder / "__init__.py").write_text("from made_up import filled\nfrom made_up.part import value\n")
    (folder / "part.py").write_text("value = 7\n")
    (folder / "filled.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "made_up"]:
        del sys.modules[name]


def test_a_module_comes_alone_and_the_rest_for_who_asks_the_package():
    put_in_place("made_up")
    part = importlib.import_module("made_up.part")
    package = importlib.import_module("made_up")
    assert part.value == 7
    assert FILLED not in sys.modules
    assert package.part is part
    with pytest.raises(AttributeError):
        package.__version__  # noqa: B018
    assert FILLED not in sys.modules, "names of Python's own are looked for by import itself"
    assert package.value == 7
    assert FILLED in sys.modules
    with pytest.raises(AttributeError):
        package.no_such_name  # noqa: B018


def test_a_package_that_is_imported_stays_as_it_is():
    package = importlib.import_module("made_up")
    put_in_place("made_up")
    assert sys.modules["made_up"] is package
    assert FILLED in sys.modules


def test_of_a_package_that_is_not_there_nothing_is_put_in_place():
    put_in_place("made_up_and_missing")
    assert "made_up_and_missing" not in sys.modules
