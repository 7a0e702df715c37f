#!/usr/bin/env python3
"""Run what takes minutes in full, and record it: proofs.lock.

record.py SUITE    runs the suite's target `run-…`, and records what it found when all of it holds

A digest of all that a suite reads stands beside what came of it, so that the tests can tell whether these
sources were proved without proving them again. Tools are recorded, not compared with those that are here:
what one CBMC proved stays proved where there is another, or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cbmc import NoCbmcError, find

MONITOR = Path(__file__).resolve().parents[1]
RECORD = MONITOR / "proofs.lock"
HEAD = """\
# What was proved and tried in full, of which sources. `make proofs` writes this file; nobody else does.
"""
CORE = ("monitor/core/*.[ch]", "abi/flex.h", "monitor/tests/variant.py")
#: The small machine: the core, and the worlds around it.
WORLDS = (
    *CORE,
    "monitor/arch/arch.h",
    "monitor/arch/fake_host/*",
    "monitor/tests/core_state.lds",
    "monitor/tests/host.mk",
    *(f"monitor/tests/{name}.[ch]" for name in ("exhaustive", "laws", "model*", "places", "world")),
)
PROOFS = (*CORE, "monitor/arch/arch.h", "monitor/tests/prove.py", "monitor/tests/proofs/*")
SECURE_OS = (
    "secure-os/core/*.[ch]",
    "secure-os/arch/arch.h",
    "secure-os/tests/proofs/*",
    "secure-os/tests/secure_os_proofs.py",
    "abi/flex.h",
    "abi/flex_secure.h",
    "monitor/core/*.h",
    "monitor/tests/prove.py",
    "monitor/tests/variant.py",
    "monitor/tests/proofs/cbmc.h",
)


class NotHeldError(Exception):
    """A suite failed; the text ends with what it printed."""


@dataclass(frozen=True, slots=True)
class Suite:
    """A target of a makefile: patterns of its inputs from the repository's root, and of what it says."""

    name: str
    inputs: tuple[str, ...]
    found: str
    tool: Callable[[], str]
    target: str
    folder: str = "monitor"


def version_of_cbmc() -> str:
    """Return what it says of itself. Raises NoCbmcError."""
    return f"CBMC {_said(find().command('cbmc', '--version')).split()[0]}"


def version_of_gcc() -> str:
    """Return what it says of itself."""
    return f"GCC {_said(['gcc', '-dumpfullversion']).strip()}"


PROVED = r"^  (\S.*?) +\d+ properties "
SUITES = (
    Suite("prove", PROOFS, PROVED, version_of_cbmc, "prove"),
    Suite("exhaustive", WORLDS, r"^(\d+ pages.* states), .*$", version_of_gcc, "exhaustive"),
    Suite(
        "mutants", (*WORLDS, "monitor/tests/mutants.py"), r"^(\d+ of \d+) faults", version_of_gcc, "mutants"
    ),
    Suite("secure_os_prove", SECURE_OS, PROVED, version_of_cbmc, "prove", "secure-os"),
)


def inputs(suite: Suite, root: Path) -> list[Path]:
    """Return the files that a suite reads, in order."""
    return sorted({path for pattern in suite.inputs for path in root.glob(pattern) if path.is_file()})


def digest(suite: Suite, tool: str, root: Path = MONITOR.parent) -> str:
    """Return the SHA-256, in hex, of the names and contents of a suite's inputs and of the tool's name."""
    whole = hashlib.sha256(tool.encode())
    for path in inputs(suite, root):
        whole.update(f"\n{path.relative_to(root)} ".encode())
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def read() -> dict[str, dict[str, object]]:
    """Return what is recorded of each suite: its digest, tool and findings."""
    return tomllib.loads(RECORD.read_text()) if RECORD.exists() else {}


def stands(suite: Suite) -> bool:
    """Return whether the record speaks of the sources as they are."""
    entry = read().get(suite.name, {})
    return entry.get("digest") == digest(suite, str(entry.get("tool")))


def run(suite: Suite) -> dict[str, object]:
    """Run a suite in full; return what to record of it. Raises NotHeldError and NoCbmcError."""
    tool = suite.tool()
    before = digest(suite, tool)
    printed = ""
    # What a surrounding make says about its own jobs and variables is not for this one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    folder = MONITOR.parent / suite.folder
    command = ["make", "-C", str(folder), "--no-print-directory", f"run-{suite.target}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            printed += line
    if process.returncode:
        raise NotHeldError(f"{suite.name} does not hold: see above.")
    if digest(suite, tool) != before:
        raise NotHeldError(f"A source of {suite.name} changed while it ran: run it again.")
    return {"digest": before, "tool": tool, "found": re.findall(suite.found, printed, re.MULTILINE)}


def write(entries: dict[str, dict[str, object]]) -> None:
    """Replace the record."""
    parts = [HEAD]
    for name, entry in sorted(entries.items()):
        parts += [f"[{name}]\n", *(f"{key} = {json.dumps(value)}\n" for key, value in entry.items()), "\n"]
    RECORD.write_text("\n".join("".join(parts).splitlines()) + "\n")


def main(name: str) -> int:
    """Run a suite; return 1 when it does not hold."""
    (suite,) = (suite for suite in SUITES if suite.name == name)
    try:
        found = run(suite)  # takes minutes, in which another suite may have been recorded
        write(read() | {name: found})
    except (NotHeldError, NoCbmcError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _said(command: list[str]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
