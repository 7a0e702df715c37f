"""What a foreground program keeps of its speed beside FlexServe, under memory pressure.

    python -m flexserve.bench.application [--quick] [--json] [--rounds N] [--model FILE.gguf]

SQLite (flexserve.bench.foreground) and both worlds of FlexServe share one memory cgroup that is too
small for all. The program begins modestly; then it uses all of its data, which is more than the
cgroup holds. The pressure starts when the cgroup is full. Compared in each round, one after the other:

    alone      the program has the cgroup for itself
    idle       FlexServe has answered once and keeps its model; it must give that back
    inferring  FlexServe answers one request after the other, on one thread
    strawman   a process holds as much locked memory as the model has, and gives nothing back

Kept is the ratio to `alone`, of the operations from SETTLED seconds after the start of the pressure
beside idle FlexServe to the end, in the same round and the same span of time.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flexserve.bench import foreground
from flexserve.bench.group import MemoryGroup, memory_group
from flexserve.errors import FlexServeError, NormalWorldError, PeerError
from flexserve.normal.client import Address, Client
from flexserve.normal.launcher import SecureOptions
from flexserve.normal.main import ServeOptions
from flexserve.secure.models.keys import DeviceKey
from flexserve.secure.models.store import Store
from flexserve.units import GIB, MIB, format_size
from flexserve.world.messages import ChatMessage, Sampling

PAPER_KEPT = 0.972  # of normal-world applications while FlexServe infers
SETTLED = 1.0  # seconds after the start of the pressure
SCENARIOS = ("alone", "idle", "inferring", "strawman")
_NAME = "bench"
_FULL = 24 * MIB  # less than this is free: the pressure has started
_TICK = 0.05  # seconds between two looks at who has how much
_PATIENCE = 120.0  # seconds until a server is up, or a program done
_TOKENS = 48  # of each answer

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """How large and how long. `limit` in bytes, `warm` and `grown` in seconds."""

    limit: int
    rows: int  # of the database
    few: int  # of them used at first
    warm: float
    grown: float
    rounds: int


FULL = Setting(limit=3 * GIB, rows=288 << 10, few=112 << 10, warm=8.0, grown=30.0, rounds=5)
QUICK = Setting(limit=3 * GIB, rows=288 << 10, few=112 << 10, warm=8.0, grown=12.0, rounds=1)


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """Who has how much at one moment (bytes). `at`: seconds since the program began to use all its data."""

    at: float
    free: int  # of the cgroup
    secure: int  # resident in the secure world


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """One scenario of one round."""

    scenario: str
    operations: list[int]  # per foreground.BUCKET
    looks: list[Look]
    decisions: list[dict[str, Any]]
    answers: int  # that FlexServe gave meanwhile

    @property
    def pressure_at(self) -> float | None:
        """When the cgroup was full first, in seconds; None: never."""
        return next((look.at for look in self.looks if look.at >= 0 and look.free < _FULL), None)

    def done(self, since: float) -> int:
        """Operations from `since` seconds on."""
        return sum(self.operations[int(since / foreground.BUCKET + 0.999) :])

    def given_back_at(self) -> float | None:
        """When nine tenths of what the secure world shrank by had gone; None: it did not shrink."""
        sizes = [look.secure for look in self.looks]
        most, least = max(sizes, default=0), min(sizes, default=0)
        if most - least < 16 * MIB:
            return None
        goal = most - (most - least) * 9 // 10
        return next(look.at for look in self.looks if look.at >= 0 and look.secure <= goal)


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
        Store(self._store, DeviceKey.load_or_create(self._key)).add(self._model, _NAME, _unseen)
        self._say(f"writing a database of {format_size(setting.rows * foreground.PAGE)}")
        self._python("flexserve.bench.foreground", "fill", str(self._database), "--rows", str(setting.rows))
        rounds = []
        for number in range(setting.rounds):
            self._say(f"round {number + 1} of {setting.rounds}")
            shift = number % len(SCENARIOS)
            order = SCENARIOS[shift:] + SCENARIOS[:shift]
            rounds.append({scenario: self._run(scenario) for scenario in order})
        return _report(rounds, setting, version, self._reserved)

    def _run(self, scenario: str) -> Run:
        self._forget_files()
        with memory_group(self._setting.limit) as group, contextlib.ExitStack() as stack:
            server = None
            if scenario in ("idle", "inferring"):
                server = stack.enter_context(self._server(group))
                server.answer()
            elif scenario == "strawman":
                stack.enter_context(self._reservation(group))
            watch = stack.enter_context(_Watch(group, server.secure_pid if server else 0))
            if server and scenario == "inferring":
                stack.enter_context(server.answering())
            before = server.answers if server else 0
            result = self._foreground(group)
            looks = watch.looks(since=result["grown_at"])
            decisions = server.decisions() if server else []
            answers = server.answers - before if server else 0
        run = Run(scenario, result["operations"], looks, decisions, answers)
        self._say(f"  {scenario}: {sum(run.operations) / self._setting.grown:.0f} operations a second")
        return run

    def _foreground(self, group: MemoryGroup) -> dict[str, Any]:
        setting = self._setting
        arguments = {"rows": setting.rows, "few": setting.few, "warm": setting.warm, "grown": setting.grown}
        words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "flexserve.bench.foreground", "run", str(self._database), *words]
        done = subprocess.run(group.command(command), capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["it was killed"]
            raise NormalWorldError(f"The foreground program failed: {last[0]}.", hint="Free some memory.")
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    @contextlib.contextmanager
    def _server(self, group: MemoryGroup) -> Iterator[_Server]:
        socket = self._folder / "socket"
        options = {"--store": self._store, "--key": self._key, "--socket": socket}
        words = [str(word) for pair in options.items() for word in pair]
        command = group.command([sys.executable, "-m", "flexserve.bench.application", "--serve", *words])
        with (self._folder / "server.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            try:
                with Client(Address("localhost", 0, socket)) as client:
                    yield _Server(client, process)
            finally:
                process.kill()
                process.wait()
                group.clear()
                socket.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _reservation(self, group: MemoryGroup) -> Iterator[None]:
        """Hold as much locked memory as the model has, in a process of its own."""
        words = ["--reserve", str(self._reserved)]
        command = group.command([sys.executable, "-m", "flexserve.bench.application", *words])
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"held\n":
                raise NormalWorldError("The memory could not be reserved.", hint="Free some memory.")
            yield
        finally:
            process.kill()
            process.wait()

    def _forget_files(self) -> None:
        """Have the OS drop what it keeps of our files: the next run pays for its own."""
        for path in [self._database, *self._store.rglob("*")]:
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)

    def _python(self, module: str, *arguments: str) -> None:
        subprocess.run([sys.executable, "-m", module, *arguments], check=True)


class _Server:
    """A FlexServe that is being asked."""

    def __init__(self, client: Client, process: subprocess.Popen[bytes]) -> None:
        self._client, self._process = client, process
        self.answers = 0
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                client.health()
                break
            except FlexServeError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise PeerError("The server did not start.", hint="Run `flexserve serve`.") from None
                time.sleep(0.1)
        self.secure_pid = client.states().os.secure_pid or 0

    def answer(self) -> None:
        """Have one request answered."""
        prompt = [ChatMessage("user", "Why?")]
        for _ in self._client.ask(_NAME, prompt, Sampling(max_tokens=_TOKENS, temperature=0)):
            pass
        self.answers += 1

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Have one request after the other answered during the block."""
        ending = threading.Event()

        def ask() -> None:
            while not ending.is_set():
                with contextlib.suppress(FlexServeError):
                    self.answer()

        thread = threading.Thread(target=ask, name="asking", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ending.set()
            thread.join()

    def decisions(self) -> list[dict[str, Any]]:
        """Return the log of its memory decisions."""
        return [
            {"kind": line.kind, "size": line.size, "count": line.count, "reason": line.reason}
            for line in self._client.decisions().decisions
        ]


class _Watch:
    """Looks at a cgroup and at a secure process, until the end of the block."""

    def __init__(self, group: MemoryGroup, pid: int) -> None:
        self._group, self._pid = group, pid
        self._seen: list[tuple[float, int, int]] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def looks(self, *, since: float) -> list[Look]:
        """Return what was seen, at times relative to `since`."""
        return [Look(at - since, free, secure) for at, free, secure in list(self._seen)]

    def _run(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._ending.wait(_TICK):
            secure = 0
            with contextlib.suppress(OSError, IndexError):  # it died: it has nothing
                secure = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1]) * page
            self._seen.append((time.monotonic(), self._group.limit - self._group.used(), secure))


# ---- the report


def _report(rounds: list[dict[str, Run]], setting: Setting, version: int, model: int) -> dict[str, Any]:
    cells = {name: _cell(name, rounds) for name in SCENARIOS}
    return {
        "kept_fraction": cells["idle"]["kept"],
        "paper_kept_fraction": PAPER_KEPT,
        "cells": cells,
        "settled_after_s": SETTLED,
        "cgroup_version": version,
        "limit_bytes": setting.limit,
        "data_bytes": setting.rows * foreground.PAGE,
        "model_bytes": model,
        "rounds": len(rounds),
    }


def _cell(scenario: str, rounds: list[dict[str, Run]]) -> dict[str, Any]:
    kept, whole, pressure, returned = [], [], [], []
    for runs in rounds:
        run, alone = runs[scenario], runs["alone"]
        at = runs["idle"].pressure_at or 0.0
        kept.append(run.done(at + SETTLED) / max(1, alone.done(at + SETTLED)))
        whole.append(run.done(0) / max(1, alone.done(0)))
        if run.pressure_at is not None:
            pressure.append(run.pressure_at)
        if (given := run.given_back_at()) is not None:
            returned.append(given - (run.pressure_at or 0.0))
    last = rounds[-1][scenario]
    return {
        "kept": statistics.median(kept),
        "kept_all": kept,
        "kept_since_growth": statistics.median(whole),
        "operations_per_second": statistics.median(
            sum(runs[scenario].operations) / (len(runs[scenario].operations) * foreground.BUCKET)
            for runs in rounds
        ),
        "pressure_at_s": statistics.median(pressure) if pressure else None,
        "given_back_after_s": statistics.median(returned) if returned else None,
        "secure_bytes_first": last.looks[0].secure if last.looks else 0,
        "secure_bytes_last": last.looks[-1].secure if last.looks else 0,
        "answers": statistics.median(runs[scenario].answers for runs in rounds),
        "timeline": _timeline(last),
        "decisions": last.decisions,
    }


def _timeline(run: Run) -> list[dict[str, float]]:
    """Return one row for each bucket: seconds, operations a second, bytes free and in the secure world."""
    rows = []
    for number, count in enumerate(run.operations):
        at = number * foreground.BUCKET
        look = next((look for look in run.looks if look.at >= at), run.looks[-1])
        rows.append(
            {"s": at, "per_second": count / foreground.BUCKET, "free": look.free, "secure": look.secure}
        )
    return rows


def as_text(report: dict[str, Any]) -> str:
    """Return the report for people."""
    lines = [
        f"SQLite over {format_size(report['data_bytes'])} beside a model of "
        f"{format_size(report['model_bytes'])}, in {format_size(report['limit_bytes'])} "
        f"(cgroup v{report['cgroup_version']}, {report['rounds']} rounds, medians)",
        "",
        f"{'':10} {'kept':>7} {'ops/s':>9} {'pressure':>9} {'returned':>9}",
    ]
    for name, cell in report["cells"].items():
        at = "-" if cell["pressure_at_s"] is None else f"{cell['pressure_at_s']:.2f} s"
        given = "-" if cell["given_back_after_s"] is None else f"+{cell['given_back_after_s']:.2f} s"
        kept, speed = f"{100 * cell['kept']:.1f} %", f"{cell['operations_per_second']:.0f}"
        lines.append(f"{name:10} {kept:>7} {speed:>9} {at:>9} {given:>9}")
    lines.append(f"{'paper':10} {100 * PAPER_KEPT:>5.1f} %   (while inferring, on an NPU)")
    lines += ["", "beside idle FlexServe, over time (last round):"]
    idle, alone = (report["cells"][name]["timeline"] for name in ("idle", "alone"))
    for mine, theirs in list(zip(idle, alone, strict=True))[::4]:
        share = 100 * mine["per_second"] / max(1.0, theirs["per_second"])
        lines.append(
            f"{mine['s']:6.1f} s {mine['per_second']:9.0f} ops/s ({share:3.0f} % of alone), "
            f"{format_size(int(mine['secure'])):>9} in the secure world, "
            f"{format_size(max(0, int(mine['free']))):>9} free"
        )
    return "\n".join(lines)


# ---- the command


def measure(say: Say, *, quick: bool, model: Path | None = None, rounds: int | None = None) -> dict[str, Any]:
    """Measure, and return `kept_fraction` beside idle FlexServe, and a cell for each scenario.

    `model` is a GGUF file (None: the synthetic one of `flexserve bench`, written when it is not there).
    Raises NormalWorldError where no memory cgroup can be made: root is needed.
    """
    setting = QUICK if quick else FULL
    if rounds is not None:
        setting = dataclasses.replace(setting, rounds=rounds)
    with tempfile.TemporaryDirectory(prefix="flexserve-application-", dir=_disk()) as folder:
        return Application(Path(folder), model or _default_model(say), setting, say).run()


def _default_model(say: Say) -> Path:
    from flexserve.bench.shapes import SHAPES
    from flexserve.bench.synth import write_synthetic
    from flexserve.settings import cache_folder

    path = cache_folder() / "models" / "tinyllama-1.1b-q4_0.synth.gguf"
    if not path.exists():
        say(f"writing {path}")
        write_synthetic(path, SHAPES["tinyllama-1.1b"], "q4_0")
    return path


def _disk() -> Path:
    """Return a folder on a real disk: /tmp may be in memory."""
    from flexserve.settings import cache_folder

    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _serve(store: Path, key: Path, socket: Path) -> int:
    """Be the server of a scenario. The model stays, until it is recalled."""
    from flexserve.normal.main import serve

    secure = SecureOptions(store, key, threads=1, context=512, idle_seconds=86400.0)
    return serve(ServeOptions(secure, host=None, unix_socket=socket, log_level="warning"))


def _reserve(size: int) -> None:
    """Hold `size` bytes of locked memory until killed."""
    from flexserve.platforms.linux.secure_memory import MemfdSecretMemory

    memory = MemfdSecretMemory()
    arena = memory.reserve(size)
    memory.commit(arena, 0, arena.size)
    view = memory.view(arena, 0, arena.size)
    page = os.sysconf("SC_PAGE_SIZE")
    view[::page] = bytes(len(view[::page]))
    sys.stdout.write("held\n")
    sys.stdout.flush()
    threading.Event().wait()


def _unseen(_done: int, _total: int) -> None:
    pass


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flexserve.bench.application", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--model", type=Path, help="a GGUF file [a synthetic 1.1 B model]")
    for name in ("--store", "--key", "--socket"):
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--reserve", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        return _serve(given.store, given.key, given.socket)
    if given.reserve is not None:
        _reserve(given.reserve)
    try:
        report = measure(_say, quick=given.quick, model=given.model, rounds=given.rounds)
    except FlexServeError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write((json.dumps(report) if given.json else as_text(report)) + "\n")
    return 0


def _say(what: str) -> None:
    sys.stderr.write(f"bench: {what}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
