"""A server is imported without what it does not need; everybody else finds that as before."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from flexserve.normal.imports import hidden, importing

PROGRAM = """
import gc, sys
from flexserve.normal.imports import importing
with importing():
    assert not gc.isenabled()
    import flexserve.normal.main
assert gc.isenabled()
assert gc.get_freeze_count() > 0
found = {name.partition(".")[0] for name in sys.modules}
assert "structlog" in found
assert not found & {"rich", "pygments"}
assert not [name for name in sys.modules if name.startswith("pydantic.v1.")]
import rich
"""


def test_a_server_is_imported_without_what_draws_and_without_old_forms() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=False, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0


def test_a_client_is_imported_without_the_command_line_of_its_library() -> None:
    program = "import sys, flexserve.normal.client; print({'click', 'rich', 'pygments'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_what_is_hidden_is_not_found_and_afterwards_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import colorsys

    with hidden("colorsys"), pytest.raises(ImportError):
        import colorsys
    assert sys.modules["colorsys"] is colorsys
    monkeypatch.delitem(sys.modules, "colorsys")
    with hidden("colorsys"):
        pass
    assert "colorsys" not in sys.modules


def test_an_import_that_fails_leaves_the_garbage_collector_on() -> None:
    with pytest.raises(ImportError), importing():
        import flexserve.nothing  # type: ignore[import-not-found]  # noqa: F401
    assert gc.isenabled()
