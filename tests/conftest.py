"""What holds for all tests."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from flexserve.units import GIB

# Who starts the tests in the background of a script has them ignore SIGINT, and so would every program
# that they start to press Ctrl-C in it: it would wait for an answer's end that takes minutes.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The tests make thousands of small files durable, and wait for a disk each time. What they write is in memory
# where there is plenty of it and no TMPDIR says otherwise. Tests that pass leave nothing there.
IN_MEMORY = "/dev/shm"
ROOM = 8 * GIB  # bytes: the files of four processes that run tests have at most a tenth at a time


def _has_room(folder: str) -> bool:
    """Return whether `folder` has `ROOM` bytes of memory free, and programs may run from files in it."""
    try:
        place = os.statvfs(folder)
    except OSError:
        return False
    if place.f_flag & os.ST_NOEXEC or not os.access(folder, os.W_OK):
        return False
    with open("/proc/meminfo") as file:
        numbers = {name: int(number.split()[0]) for name, number in (line.split(":") for line in file)}
    return min(place.f_bavail * place.f_frsize, numbers["MemAvailable"] * 1024) >= ROOM


if "TMPDIR" not in os.environ and _has_room(IN_MEMORY):
    os.environ["TMPDIR"] = tempfile.tempdir = IN_MEMORY

# Threads that multiply matrices wait for each other by spinning, and this machine's cores run other tests.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# No test asserts a duration; on a busy machine, the first of a test's examples takes seconds.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
# `make mutants` runs a property some thousand times: few examples, the same each time, failures not shrunk.
settings.register_profile(
    "mutants", deadline=None, max_examples=30, derandomize=True, phases=(Phase.explicit, Phase.generate)
)

DEAREST_FIRST = ("vm", "engine", "proof")
# Files that take a quarter of a minute of a core and more: one of them would run alone at the end.
LONGEST_FIRST = (
    "e2e/test_pages.py",
    "attacks/test_monitor_attacks.py",
    "platforms/trustzone/test_driver.py",
    "monitor/test_core.py",
    "e2e/test_identity.py",
    "e2e/test_npu_answers.py",
    "e2e/test_booted_npu.py",
    "platforms/trustzone/test_monitor_boot.py",
    "trusted/test_grammar.py",
    "trusted/store/test_architecture.py",
    "trusted/test_trace.py",
    "platforms/trustzone/test_world_switch.py",
    "e2e/test_endurance.py",
    "e2e/test_sessions.py",
    "conformance/test_openapi.py",
    "bench/test_paper.py",
    "harness/test_synth.py",
    "platforms/trustzone/test_npu_gate.py",
    "e2e/test_store_damage.py",
    "platforms/trustzone/test_npu_driver.py",
    "e2e/test_booted.py",
    "attacks/test_memory_attacks.py",
    "contract/test_trustzone_memory.py",
    "bench/test_simulated.py",
    "trusted/test_families.py",
    "e2e/test_hostile_normal_world.py",
    "secure_os/test_portable_core.py",
    "normal/test_hostile_http.py",
    "cli/test_vendor_commands.py",
    "trusted/test_rendering.py",
    "normal/test_serve.py",
)
FETCHED = ("real", "libraries")
COVERED = ("policy", "serving", "trusted")  # as in the Makefile: their own tests count for their coverage

gc.disable()  # while tests are imported and collected: that leaves many objects and hardly any garbage


def pytest_collection_finish() -> None:
    """Have the garbage collector look only at what the tests make: what was collected lives to the end.

    With what little garbage there is: looking for it takes as long as a dozen of tests.
    """
    gc.freeze()
    gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    platforms = ("linux", "trustzone-inside", "trustzone-host")
    parser.addoption("--slow-pages", action="store_true", help="also what documents mark as slow, or root's")
    parser.addoption("--platform", choices=platforms, default="linux", help="of servers and benchmarks")


@pytest.hookimpl(trylast=True)  # then Hypothesis has marked what is its own
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no process that runs tests ends long after the others.

    Tests of what has to be fetched run for those only who ask for them by their mark. Properties count for no
    coverage: to be traced would double their time, and each branch is to have a test by example, too. Nor do
    tests of other packages.
    """
    for mark in FETCHED:
        if mark not in config.option.markexpr:
            items[:] = [item for item in items if item.get_closest_marker(mark) is None]
    items.sort(key=lambda item: (_length(item), _rank(item)))
    for item in items:
        if item.get_closest_marker("hypothesis") or not _is_below(item, COVERED):
            item.add_marker("no_cover")


def _length(item: pytest.Item) -> int:
    """Return the place of an item's file in `LONGEST_FIRST`, or behind all of them."""
    path = item.path.as_posix()
    found = (place for place, name in enumerate(LONGEST_FIRST) if path.endswith(f"/tests/{name}"))
    return next(found, len(LONGEST_FIRST))


def _is_below(item: pytest.Item, folders: Sequence[str]) -> bool:
    """Return whether an item's file is in one of `folders` of the tests."""
    return any(Path(__file__).parent / folder in item.path.parents for folder in folders)


def _rank(item: pytest.Item) -> int:
    marks = {mark.name for mark in item.iter_markers()}
    return next((rank for rank, name in enumerate(DEAREST_FIRST) if name in marks), len(DEAREST_FIRST))
