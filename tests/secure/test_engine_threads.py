"""The engine's threads: what must be settled before the library that makes them is there."""

from __future__ import annotations

import os
import subprocess
import sys

LOOK = (
    "import os, sys, flexserve.secure.engine;print('llama_cpp' in sys.modules, os.environ['GOMP_SPINCOUNT'])"
)


def look(**environment: str) -> list[str]:
    kept = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    command = [sys.executable, "-c", LOOK]
    return subprocess.run(
        command, env=kept | environment, capture_output=True, text=True, check=True
    ).stdout.split()


def test_how_long_threads_spin_is_settled_before_the_library_is_loaded():
    loaded, rounds = look()
    assert loaded == "False"
    assert int(rounds) < 300_000


def test_whoever_starts_a_world_may_settle_it_differently():
    assert look(GOMP_SPINCOUNT="77")[1] == "77"
