"""The secure OS's portable core, on this machine: secure-os/tests holds the tests, this runs them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flexserve.emulator import tools

SECURE_OS = Path(__file__).resolve().parents[2] / "secure-os"
MORE_THAN = 50  # tests


def make(*words: str) -> str:
    """Make a target of secure-os/Makefile; return what is printed. Skips when a compiler is not there."""
    try:
        tools.require("make", "gcc")
    except tools.MissingToolError as error:
        pytest.skip(error.hint)
    return tools.run("make", "-C", SECURE_OS, "--no-print-directory", *words)


def test_the_core_passes_its_tests_on_a_machine_of_arrays():
    passed = re.search(r"^(\d+) tests passed$", make("check"), re.MULTILINE)
    assert passed is not None
    assert int(passed[1]) > MORE_THAN


@pytest.mark.parametrize("case", ["", "timed", "thief timed sorry"])
def test_no_wake_up_is_lost_between_who_lends_and_who_waits(case):
    assert "no wake-up is lost" in make("interleavings", f"CASE={case}")


@pytest.mark.parametrize("case", ["believed", "timed believed", "thief timed"])
def test_a_lost_wake_up_is_found(case):
    assert "a wake-up is lost" in make("interleavings", f"CASE={case}")


def test_the_portable_core_has_no_assembly():
    for path in (SECURE_OS / "core").glob("*.[ch]"):
        assert "asm" not in path.read_text(), path
