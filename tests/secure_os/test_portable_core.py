"""The secure OS's portable core, on this machine: secure-os/tests holds the tests, this runs them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SECURE_OS = Path(__file__).resolve().parents[2] / "secure-os"
TRUSTED_LINES = 3000  # of C and assembly, without comments and blank lines
MORE_THAN = 50  # tests


def make(*targets: str) -> str:
    """Run targets of secure-os/Makefile; return what they print. Skips when a compiler is not there."""
    missing = [tool for tool in ("make", "gcc") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"apt-get install {' '.join(missing)}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "-C", str(SECURE_OS), "--no-print-directory", *targets],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_core_passes_its_tests_on_a_machine_of_arrays():
    passed = re.search(r"^(\d+) tests passed$", make("check"), re.MULTILINE)
    assert passed is not None
    assert int(passed[1]) > MORE_THAN


def test_the_secure_os_can_be_read_in_a_day():
    assert 0 < int(make("lines")) <= TRUSTED_LINES


def test_the_portable_core_has_no_assembly():
    for path in (SECURE_OS / "core").glob("*.[ch]"):
        assert "asm" not in path.read_text(), path
