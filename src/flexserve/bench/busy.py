"""How fast decoding and prompts are beside other busy programs, by how many threads compute.

    python -m flexserve.bench.busy [FILE.gguf] [--rounds N] [--tokens N] [--spins N,N,…]

As served, there are as many threads as others leave cores (policy.thread_count). That is compared with fixed
settings: as many threads as there are cores, which wait for each other spinning so many rounds and sleep
then, and one thread, which waits for nobody. Every setting is a process of its own; within a round each has
its turn, on the machine as it is and beside one and two processes that never wait. Prints a table of
medians, and the median part that each setting reaches of the best fixed one of its line and round.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flexserve.harness.shapes import SHAPES
from flexserve.harness.synth import write_synthetic
from flexserve.harness.worlds import DrivenWorld
from flexserve.platforms.linux import parent_death
from flexserve.protocol.launch import SecureOptions
from flexserve.trusted.store.keys import DeviceKey
from flexserve.trusted.store.store import Store

_NAME = "busy"
_SHAPE, _QUANT = "medium-llama", "q4_0"
_PROMPT = "abcdefgh " * 30
_CONTEXT = 1024  # tokens
_BUSY = (0, 1, 2)
_SETTLE = 0.3  # seconds
_PROBE, _CRAWL = 6, 30.0  # tokens, and tokens per second below which a setting is not measured for longer


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """A way to use threads. `threads` 0: as served; `spins`: rounds before a waiting thread sleeps."""

    threads: int
    spins: int = 0

    def __str__(self) -> str:
        return f"{self.threads} × {self.spins}" if self.threads else "as served"

    def open(self, folder: Path) -> DrivenWorld:
        """Start a secure world that computes so."""
        store, key = folder / "store", folder / "key"
        options = SecureOptions(store, key, "plain", threads=self.threads, context=_CONTEXT)
        variables = {"GOMP_SPINCOUNT": str(self.spins)} if self.threads else {}
        return DrivenWorld(options, variables=variables)


Sample = tuple[float, float]  # tokens per second: decoding, prompt


def measure(
    model: Path, folder: Path, *, rounds: int, tokens: int, spins_of_all: Sequence[int]
) -> dict[tuple[int, Setting], list[Sample]]:
    """Return the samples of each setting beside each number of busy processes."""
    cores = len(os.sched_getaffinity(0))
    settings = [
        Setting(0),
        *(Setting(cores, spins) for spins in spins_of_all),
        Setting(1, 1000),
    ]
    Store(folder / "store", DeviceKey.load_or_create(folder / "key")).add(
        model, _NAME, lambda _done, _all: None
    )
    samples: dict[tuple[int, Setting], list[Sample]] = {}
    with ExitStack() as stack:
        worlds = {setting: stack.enter_context(setting.open(folder)) for setting in settings}
        for world in worlds.values():
            world.warm(_NAME)
            world.generate(_NAME, _PROMPT, 4)
        for number in range(rounds):
            print(f"busy: round {number + 1} of {rounds}", file=sys.stderr, flush=True)  # noqa: T201
            for busy in _BUSY:
                with _beside(busy):
                    for setting, world in worlds.items():
                        samples.setdefault((busy, setting), []).append(_sample(world, tokens))
    return samples


def _sample(world: DrivenWorld, tokens: int) -> Sample:
    """Return a sample of what comes after a switch of sides: cold caches, another number of threads."""
    sample = _speeds(world, _PROBE)
    if sample[0] < _CRAWL:
        return sample
    for _ in range(2):
        sample = _speeds(world, tokens)
    return sample


def _speeds(world: DrivenWorld, tokens: int) -> Sample:
    finished = world.generate(_NAME, _PROMPT, tokens).finished
    usage, timings = finished.usage, finished.timings
    return (
        (usage.completion_tokens - 1) / timings.decode * 1000,
        usage.prompt_tokens / timings.prefill * 1000,
    )


@contextmanager
def _beside(count: int) -> Iterator[None]:
    """Have `count` processes run that never wait."""
    program = parent_death.command(sys.executable, "-c", "while True: pass")
    processes = [subprocess.Popen(program) for _ in range(count)]
    try:
        time.sleep(_SETTLE)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def table(samples: dict[tuple[int, Setting], list[Sample]]) -> str:
    """Return the medians as a Markdown table, tokens per second and (part of the line's best fixed one)."""
    settings = list(dict.fromkeys(setting for _, setting in samples))
    lines = ["| | " + " | ".join(map(str, settings)) + " |", "|---" * (len(settings) + 1) + "|"]
    for part, what in enumerate(("decode", "prompt")):
        for busy in _BUSY:
            speeds = {setting: [sample[part] for sample in samples[busy, setting]] for setting in settings}
            medians = {setting: statistics.median(speeds[setting]) for setting in settings}
            best = max((setting for setting in settings if setting.threads), key=medians.__getitem__)
            cells = [f"{medians[s]:.0f} ({_ratio(speeds[s], speeds[best]):.2f})" for s in settings]
            lines.append(f"| {what} beside {busy} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ratio(speeds: list[float], others: list[float]) -> float:
    return statistics.median(speed / other for speed, other in zip(speeds, others, strict=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="flexserve.bench.busy", description=__doc__)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--spins", default="0,1000,50000", help="rounds before a waiting thread sleeps")
    options = parser.parse_args()
    spins = [int(word) for word in options.spins.split(",")]
    with tempfile.TemporaryDirectory(prefix="flexserve-busy-", dir=os.environ.get("TMPDIR")) as name:
        folder, model = Path(name), options.model
        if model is None:
            model = folder / f"{_SHAPE}.gguf"
            write_synthetic(model, SHAPES[_SHAPE], _QUANT)
        samples = measure(model, folder, rounds=options.rounds, tokens=options.tokens, spins_of_all=spins)
    sys.stdout.write(table(samples) + "\n")


if __name__ == "__main__":
    main()
