"""The Flex-Monitor's portable core, on this machine: monitor/tests holds the tests, this runs them."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MONITOR = ROOT / "monitor"
BRANCHES = 95.0  # percent
FUZZ_SECONDS = 5

TOOLS = {
    "make": "make",
    "gcc": "gcc",
    "ld": "binutils",
    "clang": "clang libclang-rt-dev",
    "llvm-cov": "llvm",
    "llvm-profdata": "llvm",
}


@functools.cache
def clang_has_its_runtime() -> bool:
    """Whether clang can link what its sanitizers need: Debian has that in a package of its own."""
    linked = subprocess.run(
        ["clang", "-fsanitize=address", "-x", "c", "-", "-o", "/dev/null"],
        input=b"int main(void) { return 0; }",
        capture_output=True,
        check=False,
    )
    return linked.returncode == 0


def make(*targets: str, tools: tuple[str, ...]) -> str:
    """Run targets of monitor/Makefile; return what they print. Skips when a tool is not there."""
    missing = [tool for tool in ("make", "gcc", "ld", *tools) if shutil.which(tool) is None]
    if missing:
        packages = " ".join(sorted({TOOLS[tool] for tool in missing}))
        pytest.skip(f"no {', '.join(missing)}: apt-get install {packages}")
    if "clang" in tools and not clang_has_its_runtime():
        pytest.skip(f"clang has no sanitizers: apt-get install {TOOLS['clang']}")
    # What a surrounding make says about its own jobs and variables is not for this one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "-C", str(MONITOR), "--no-print-directory", *targets],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def run(program: str, *words: str) -> int:
    """Make a program of tests and run those that begin with a word; return how many passed."""
    make(f"build/host/{program}", tools=("clang",))
    done = subprocess.run(
        [MONITOR / "build/host" / program, *words], capture_output=True, text=True, check=False
    )
    passed = re.search(r"^(\d+) tests passed$", done.stdout, re.MULTILINE)
    assert passed is not None, done.stdout[-3000:] + done.stderr[-3000:]
    return int(passed[1])


def test_every_call_and_command_does_what_the_interface_says_under_another_compiler_and_its_sanitizers():
    """`make check` has it under gcc; `make -C monitor test` under all of them."""
    assert run("unit-clang") > 100


def test_cpus_and_the_secure_world_at_once_have_no_race():
    """One test has several threads. The others would take half a minute, and can have none."""
    assert run("unit-threads", "two_cpus_and_the_secure_world") == 1


def test_no_call_and_no_command_is_without_tests():
    make("build/host/unit-gcc", tools=())
    listed = subprocess.run(
        [MONITOR / "build/host/unit-gcc", "--list"], capture_output=True, check=True, text=True
    )
    names = listed.stdout.split()
    abi = tomllib.loads((ROOT / "abi" / "flex.toml").read_text())
    expected = [call["name"].lower() + "_" for call in abi["call"]]
    expected += [f"command_{command['name'].lower()}_" for command in abi["command"]]
    assert [prefix for prefix in expected if not any(name.startswith(prefix) for name in names)] == []


@pytest.mark.proof
def test_the_laws_hold_in_every_state_of_the_smallest_machine():
    make("build/host/exhaustive-2-1-1", tools=())
    printed = subprocess.run(
        [MONITOR / "build/host/exhaustive-2-1-1"], capture_output=True, check=True, text=True
    ).stdout
    states = re.search(r"(\d+) states", printed)
    assert states is not None
    assert int(states[1]) > 10_000, "so few: the machine did not get far"


def test_long_random_walks_of_both_worlds_break_no_law():
    make("fuzz", f"SECONDS={FUZZ_SECONDS}", tools=("clang",))


def test_nearly_every_branch_of_the_core_is_taken_by_its_tests():
    # Branches are counted as they are written, however the compiler optimises.
    optimised = "COVERED=-O1 -fprofile-instr-generate -fcoverage-mapping"
    printed = make("coverage", optimised, tools=("clang", "llvm-cov", "llvm-profdata"))
    covered = {
        line.split()[0]: float(line.split()[-1].rstrip("%"))
        for line in printed.splitlines()
        if re.match(r"\w+\.c ", line)
    }
    assert {"pages.c", "tables.c", "layout.c", "mailbox.c", "calls.c", "secure.c", "npu.c"} <= covered.keys()
    assert {name: percent for name, percent in covered.items() if percent < BRANCHES} == {}
