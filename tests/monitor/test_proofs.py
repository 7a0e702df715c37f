"""What CBMC proves of the monitor's core: monitor/tests/prove.py says it, this runs it."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MONITOR = ROOT / "monitor"


@functools.cache
def why_not() -> str:
    """Why there is no CBMC here, and what to do; empty when there is."""
    missing = [tool for tool in ("make", "gcc") if shutil.which(tool) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install {' '.join(missing)}"
    found = subprocess.run(
        [sys.executable, MONITOR / "tests/cbmc.py"], capture_output=True, text=True, check=False
    )
    return found.stderr.strip() if found.returncode else ""


def make(target: str) -> str:
    """Run a target of monitor/Makefile; return what it prints. Skips where there is no CBMC."""
    if why_not():
        pytest.skip(why_not())
    # What a surrounding make says about its own jobs and variables is not for this one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "-C", str(MONITOR), "--no-print-directory", target],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.timeout(3600)
def test_the_laws_are_proved_for_every_call_from_any_state():
    printed = make("prove")
    proofs = re.findall(r"^  (.*?) +(\d+) properties ", printed, re.MULTILINE)
    assert printed.endswith(f"{len(proofs)} of {len(proofs)} proofs hold\n")
    abi = tomllib.loads((ROOT / "abi" / "flex.toml").read_text())
    expected = {
        "range",
        "layout",
        "redistributor",
        "start",
        "start, no NPU",
        "step",
        "fault",
        "end",
        "other numbers",
    }
    expected |= {f"call {call['name']}" for call in abi["call"]}
    assert {name for name, _ in proofs} == expected
