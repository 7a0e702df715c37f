"""What a foreground program keeps of its speed beside FlexServe, under memory pressure.

    python -m flexserve.bench.application [--quick] [--json] [--rounds N] [--access WHICH] [--model FILE.gguf]

SQLite (flexserve.bench.foreground) and both worlds of FlexServe share one memory cgroup that is too
small for all. The program begins modestly; then it uses all of its data, which is more than the
cgroup holds. The pressure starts when the cgroup is full. Compared in each round, one after the other:

    alone      the program has the cgroup for itself
    idle       FlexServe has answered once and keeps its model; it must give that back
    inferring  FlexServe answers one request after the other, on one thread
    strawman   a process holds as much locked memory as the model has, and gives nothing back

Kept is how long `alone` took for the operations from a second after the start of the pressure beside
idle FlexServe to the end, over how long they took here, in the same round.

After the program ended beside idle FlexServe, the model comes back by itself. Told is after how many seconds
it is whole, and how long the next first token takes, over the median of five with everything in memory.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from flexserve.bench import application_report, foreground
from flexserve.bench.application_programs import MODEL, Watch, reservation, serving
from flexserve.bench.application_report import SCENARIOS, Run, Setting
from flexserve.bench.group import MemoryGroup, memory_group
from flexserve.errors import FlexServeError, NormalWorldError
from flexserve.trusted.store.keys import DeviceKey
from flexserve.trusted.store.store import Store
from flexserve.units import GIB, format_size

# Beside a model of 600 MiB and both worlds, 4 GiB have room for `few` rows and little more.
FULL = Setting(limit=4 * GIB, rows=384 << 10, few=200_000, warm=2.0, grown=100, rounds=7)
QUICK = dataclasses.replace(FULL, grown=60, rounds=1)

Say = Callable[[str], None]
_PATIENCE = 90.0  # seconds for the model to come back after the program ended


class Application:
    """The measurement, in a folder of its own on a real disk."""

    def __init__(self, folder: Path, model: Path, setting: Setting, say: Say) -> None:
        self._folder, self._setting, self._say = folder, setting, say
        self._database = folder / "documents.db"
        self._store, self._key = folder / "store", folder / "device.key"
        self._model = model
        self._reserved = model.stat().st_size

    def run(self) -> dict[str, Any]:
        """Measure; return the report."""
        setting = self._setting
        with memory_group(setting.limit) as group:
            version = group.version
        self._say(f"memory cgroup of version {version}, {format_size(setting.limit)}")
        self._say("sealing the model")
        Store(self._store, DeviceKey.load_or_create(self._key)).add(self._model, MODEL, _unseen)
        self._say(f"writing a database of {format_size(setting.rows * foreground.PAGE)}")
        command = [sys.executable, "-m", "flexserve.bench.foreground", "fill", str(self._database)]
        subprocess.run([*command, "--rows", str(setting.rows)], check=True)
        rounds = []
        for number in range(setting.rounds):
            self._say(f"round {number + 1} of {setting.rounds}")
            shift = number % len(SCENARIOS)
            order = SCENARIOS[shift:] + SCENARIOS[:shift]
            rounds.append({scenario: self._run(scenario) for scenario in order})
        return application_report.summed_up(rounds, setting, version, self._reserved)

    def _run(self, scenario: str) -> Run:
        self._forget_files()
        with memory_group(self._setting.limit) as group, contextlib.ExitStack() as stack:
            server = None
            if scenario in ("idle", "inferring"):
                server = stack.enter_context(serving(group, self._folder, self._store, self._key))
                server.answer()
                self._forget_files()  # as the OS does in time; what the model was read from is not needed now
            elif scenario == "strawman":
                stack.enter_context(reservation(group, self._reserved))
            watch = stack.enter_context(Watch(group, server.secure_pid if server else 0))
            if server and scenario == "inferring":
                stack.enter_context(server.answering())
            before = server.answers if server else 0
            result = self._foreground(group)
            looks = watch.looks(since=result["grown_at"])
            decisions = server.decisions() if server else []
            answers = server.answers - before if server else 0
            came_back = server.comes_back(_PATIENCE) if server and scenario == "idle" else None
        run = Run(scenario, result["done"], result["read"], looks, decisions, answers, came_back)
        self._say(f"  {scenario}: {run.speed:.0f} operations a second")
        return run

    def _foreground(self, group: MemoryGroup) -> dict[str, Any]:
        setting = self._setting
        names = ("rows", "few", "warm", "grown", "access")
        words = [word for name in names for word in (f"--{name}", str(getattr(setting, name)))]
        command = [sys.executable, "-m", "flexserve.bench.foreground", "run", str(self._database), *words]
        done = subprocess.run(group.command(command), capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["it was killed"]
            raise NormalWorldError(f"The foreground program failed: {last[0]}.", hint="Free some memory.")
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def _forget_files(self) -> None:
        """Have the OS drop what it keeps of our files: the next run pays for its own."""
        for path in [self._database, *self._store.rglob("*")]:
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


# ---- the command


def measure(
    say: Say,
    *,
    quick: bool,
    model: Path | None = None,
    rounds: int | None = None,
    access: foreground.Access = "zipf",
) -> dict[str, Any]:
    """Measure, and return `kept_fraction` beside idle FlexServe, and a cell for each scenario.

    `access` says how the program chooses its rows. `model` is a GGUF file (None: the synthetic one of
    `flexserve bench`, written when it is not there).
    Raises NormalWorldError where no memory cgroup can be made: root is needed.
    """
    setting = dataclasses.replace(QUICK if quick else FULL, access=access)
    if rounds is not None:
        setting = dataclasses.replace(setting, rounds=rounds)
    folder = _disk() / "application"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed: gigabytes
    folder.mkdir()
    try:
        return Application(folder, model or _default_model(say), setting, say).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _default_model(say: Say) -> Path:
    from flexserve.folders import cache_folder
    from flexserve.harness.shapes import SHAPES
    from flexserve.harness.synth import write_synthetic

    path = cache_folder() / "models" / "tinyllama-1.1b-q4_0.synth.gguf"
    if not path.exists():
        say(f"writing {path}")
        write_synthetic(path, SHAPES["tinyllama-1.1b"], "q4_0")
    return path


def _disk() -> Path:
    """Return a folder on a real disk: /tmp may be in memory."""
    from flexserve.folders import cache_folder

    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _unseen(_done: int, _total: int) -> None:
    pass


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flexserve.bench.application", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--access", choices=get_args(foreground.Access), default="zipf")
    parser.add_argument("--model", type=Path, help="a GGUF file [a synthetic 1.1 B model]")
    given = parser.parse_args()
    try:
        report = measure(_say, quick=given.quick, model=given.model, rounds=given.rounds, access=given.access)
    except FlexServeError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write((json.dumps(report) if given.json else application_report.as_text(report)) + "\n")
    return 0


def _say(what: str) -> None:
    sys.stderr.write(f"bench: {what}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
