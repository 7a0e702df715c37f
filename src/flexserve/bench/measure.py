"""The measurements of `flexserve bench`: plain llama.cpp and FlexServe interleaved in one run.

Both run as processes of their own with the same library, threads, context and batch. Every
round measures each quantity once on each side, so that whatever else the machine does meets
both; ratios are taken within a round, and the median over rounds is reported.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flexserve.errors import CallerError
from flexserve.harness.plain import PlainProcess
from flexserve.harness.worlds import DrivenWorld
from flexserve.protocol.launch import Memory, SecureOptions
from flexserve.trusted.store.keys import DeviceKey
from flexserve.trusted.store.store import Store
from flexserve.units import MIB

_CONTEXT = 2048  # tokens
_DECODED = 32  # tokens generated to measure decode speed
_FRACTIONS = (25, 50, 75, 100)  # percent of the weights recalled
_RECALL = 512 * MIB
_DEADLINE = 250.0  # milliseconds
_IDLE_SECONDS = 2.0
_NAME = "bench"
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """What is measured and how often."""

    model: Path  # a GGUF
    runs: int
    prompts: tuple[int, ...]  # lengths in tokens
    threads: int
    memory: Memory  # "secret" or "plain"


class Bench:
    """All measurements on one model. `samples` holds every raw figure: seconds, bytes, ratios."""

    def __init__(self, setting: Setting, say: Say) -> None:
        self._setting, self._say = setting, say
        self.samples: dict[str, list[float]] = {}
        self._texts: dict[int, str] = {}

    def run(self) -> dict[str, Any]:
        """Measure; return the report as one JSON-able object."""
        with tempfile.TemporaryDirectory(prefix="flexserve-bench-", dir=_scratch_folder()) as folder:
            store, key = Path(folder) / "store", Path(folder) / "device.key"
            self._say("sealing the model")
            Store(store, DeviceKey.load_or_create(key)).add(self._setting.model, _NAME, _unseen)
            self._say("making its image")
            with self._world(store, key) as world:
                world.warm(_NAME)
                label = world.welcome
            for _ in range(min(3, self._setting.runs)):
                self._measure_start(store, key)
            for number in range(self._setting.runs):
                self._say(f"round {number + 1} of {self._setting.runs}")
                # Both anew: how fast a process decodes depends on the pages that it happened to
                # get, by more than what is to be measured.
                with self._plain() as plain, self._world(store, key) as world:
                    if not self._texts:
                        self._texts = {length: prompt_of(plain, length) for length in self._setting.prompts}
                    self._round(plain, world)
        return self._report(label.engine, label.protection, label.protected)

    def _world(self, store: Path, key: Path) -> DrivenWorld:
        threads, memory = self._setting.threads, self._setting.memory
        return DrivenWorld(SecureOptions(store, key, memory, threads=threads, context=_CONTEXT))

    def _plain(self) -> PlainProcess:
        return PlainProcess(self._setting.model, self._setting.threads, _CONTEXT)

    # ---- one round -------------------------------------------------------------------------------

    def _round(self, plain: PlainProcess, world: DrivenWorld) -> None:
        self._measure_warm(plain, world)
        for length in self._setting.prompts:
            self._measure_bound(world, length)
            for fraction in _FRACTIONS:
                self._measure_cold(world, length, fraction)
        self._measure_recall(world)
        self._measure_idle(world)

    def _measure_warm(self, plain: PlainProcess, world: DrivenWorld) -> None:
        world.warm(_NAME)
        for length, text in self._texts.items():
            for _ in range(2):  # the first after a switch of sides finds cold caches
                theirs = plain.generate(text, _DECODED)
            for _ in range(2):
                ours = world.generate(_NAME, text, _DECODED)
            if ours.text != theirs["text"]:
                raise CallerError("FlexServe and plain llama.cpp disagree on the text.", hint="Report this.")
            timings, usage = ours.finished.timings, ours.finished.usage
            steps = usage.completion_tokens - 1
            self._note(f"plain.prefill.{length}", length / theirs["prefill"])
            self._note(f"warm.prefill.{length}", length / timings.prefill * 1000)
            self._note(f"warm.prefill_ratio.{length}", theirs["prefill"] / timings.prefill * 1000)
            self._note(f"plain.decode.{length}", steps / theirs["decode"])
            self._note(f"warm.decode.{length}", steps / timings.decode * 1000)
            self._note(f"warm.decode_ratio.{length}", theirs["decode"] / timings.decode * 1000)
            self._note(f"warm.ttft.{length}", timings.ttft / 1000)

    def _measure_bound(self, world: DrivenWorld, length: int) -> None:
        """Measure the largest of: restore alone, compute alone, CPU of both ÷ cores."""
        world.generate(_NAME, self._texts[length], 1)
        cpu = cpu_seconds(world.pid)
        began = time.monotonic()
        world.generate(_NAME, self._texts[length], 1)
        compute, compute_cpu = time.monotonic() - began, cpu_seconds(world.pid) - cpu
        world.recall(None)
        cpu = cpu_seconds(world.pid)
        began = time.monotonic()
        world.warm(_NAME)
        restore, restore_cpu = time.monotonic() - began, cpu_seconds(world.pid) - cpu
        cores = len(os.sched_getaffinity(0))
        self._note("restore.alone", restore)
        self._note("restore.cpu", restore_cpu)
        self._note(f"compute.alone.{length}", compute)
        self._note(f"cold.bound.{length}", max(restore, compute, (restore_cpu + compute_cpu) / cores))

    def _measure_cold(self, world: DrivenWorld, length: int, fraction: int) -> None:
        world.warm(_NAME)
        if fraction == 100:
            world.recall(None)
        else:
            world.recall(world.status().models[0].weights * fraction // 100)
        ttft = world.generate(_NAME, self._texts[length], 1).finished.timings.ttft / 1000
        self._note(f"cold.ttft.{fraction}.{length}", ttft)
        if fraction == 100:
            self._note(f"cold.ttft_over_bound.{length}", ttft / self.samples[f"cold.bound.{length}"][-1])

    def _measure_recall(self, world: DrivenWorld) -> None:
        """Recall 512 MiB (at most nine tenths of the weights) when idle, then in mid-generation."""
        world.warm(_NAME)
        weights = world.status().models[0].weights
        demand = min(_RECALL, weights * 9 // 10)
        self._recall(world, "idle", demand)
        world.warm(_NAME)
        text = self._texts[self._setting.prompts[0]]
        expected = world.generate(_NAME, text, _DECODED).text
        started = threading.Event()
        generated: list[str] = []

        def generate() -> None:
            generated.append(world.generate(_NAME, text, _DECODED, lambda _text: started.set()).text)

        thread = threading.Thread(target=generate)
        thread.start()
        started.wait(60)
        self._recall(world, "running", demand)
        thread.join()
        if generated != [expected]:
            raise CallerError("A recall changed the text of a running generation.", hint="Report this.")

    def _recall(self, world: DrivenWorld, when: str, demand: int) -> None:
        def look() -> None:
            self._note(f"recall.seconds.{when}", time.monotonic() - began)
            self._note(f"recall.returned_fraction.{when}", (before - _resident(world.pid)) / demand)

        world.after_recall = look
        before, began = _resident(world.pid), time.monotonic()
        world.recall(demand, _DEADLINE)
        world.after_recall = lambda: None

    # ---- once ------------------------------------------------------------------------------------

    def _measure_start(self, store: Path, key: Path) -> None:
        """Measure from the start of a process to its first token."""
        text = "a" * 8
        began = time.monotonic()
        with self._plain() as plain:
            plain.generate(text, 1)
            self._note("plain.start_to_first_token", time.monotonic() - began)
        began = time.monotonic()
        with self._world(store, key) as world:
            world.generate(_NAME, text, 1)
            self._note("start_to_first_token", time.monotonic() - began)

    def _measure_idle(self, world: DrivenWorld) -> None:
        world.recall(None)
        cpu = cpu_seconds(world.pid)
        time.sleep(_IDLE_SECONDS)
        self._note("idle.cpu_fraction", (cpu_seconds(world.pid) - cpu) / _IDLE_SECONDS)
        self._note("idle.secure_rss_bytes", _resident(world.pid))

    # ---- the report ------------------------------------------------------------------------------

    def _note(self, name: str, value: float) -> None:
        self.samples.setdefault(name, []).append(value)

    def _median(self, name: str) -> float:
        return statistics.median(self.samples[name])

    def _report(self, engine: str, protection: str, protected: bool) -> dict[str, Any]:
        lengths = self._setting.prompts
        by_length = {n: {key: self._median(f"{key}.{n}") for key in _BY_LENGTH} for n in lengths}
        return {
            "model": self._setting.model.name,
            "engine": engine,
            "protection": protection,
            "protected": protected,
            "cores": len(os.sched_getaffinity(0)),
            "runs": self._setting.runs,
            "warm": {
                "prefill_ratio": statistics.median(row["warm.prefill_ratio"] for row in by_length.values()),
                "decode_ratio": statistics.median(row["warm.decode_ratio"] for row in by_length.values()),
            },
            "cold": {
                "ttft_over_bound": {str(n): self._median(f"cold.ttft_over_bound.{n}") for n in lengths},
                "restore_alone": self._median("restore.alone"),
            },
            "recall": {
                "returned_fraction": min(self._median(f"recall.returned_fraction.{w}") for w in _WHEN),
                "seconds": max(self._median(f"recall.seconds.{w}") for w in _WHEN),
            },
            "idle": {
                "secure_rss_bytes": self._median("idle.secure_rss_bytes"),
                "cpu_fraction": self._median("idle.cpu_fraction"),
            },
            "prompts": {
                str(n): {
                    **row,
                    "cold.ttft": {str(f): self._median(f"cold.ttft.{f}.{n}") for f in _FRACTIONS},
                }
                for n, row in by_length.items()
            },
            "start_to_first_token": {
                "plain": self._median("plain.start_to_first_token"),
                "flexserve": self._median("start_to_first_token"),
            },
            "samples": self.samples,
        }


_BY_LENGTH = (
    *("plain.prefill", "warm.prefill", "warm.prefill_ratio"),
    *("plain.decode", "warm.decode", "warm.decode_ratio"),
    *("warm.ttft", "compute.alone", "cold.bound"),
)
_WHEN = ("idle", "running")


def prompt_of(plain: PlainProcess, length: int) -> str:
    """Return a text of exactly `length` tokens."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    text = ""
    while (count := plain.count(text)) != length:
        if count > length:
            raise CallerError(f"No prompt of exactly {length} tokens was found.", hint="Try another length.")
        text += letters[len(text) * 7 % 26]
    return text


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process, all threads, by the OS's count."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _resident(pid: int) -> int:
    """Return the resident bytes of a process by the OS's count."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def _scratch_folder() -> str | None:
    """Return where to put the sealed copy: on a real disk, not on a tmpfs that fills memory."""
    return os.environ.get("TMPDIR") or ("/var/tmp" if os.access("/var/tmp", os.W_OK) else None)  # noqa: S108


def _unseen(_done: int, _total: int) -> None:
    """Sealing takes a second; its progress is not shown."""
