"""How long the first token takes when two models take turns in memory that holds only one of them.

    python -m flexserve.bench.switch [--rounds N] [--cap MIB] [--large SHAPE] [--small SHAPE]

A request is for the model that the one before it was not for, so most of its weights come back in place of
the other's. Beside FlexServe runs the same with chunks that are freed and allocated anew instead of moved;
within a round each has its turn. The bound is the largest of: reading and decrypting what came back,
computing, and the CPU seconds of both over the cores. Prints a table of medians; ratios are medians of ratios
within a round.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from flexserve.bench.measure import cpu_seconds
from flexserve.harness.shapes import SHAPES
from flexserve.harness.synth import write_synthetic
from flexserve.harness.worlds import DrivenWorld
from flexserve.protocol.answers import Timings
from flexserve.protocol.launch import SECURE_WORLD, SecureOptions
from flexserve.trusted.store.keys import DeviceKey
from flexserve.trusted.store.store import Store
from flexserve.units import MIB

PROGRAMS = {"moved": (SECURE_WORLD,), "freed": ("flexserve.bench.secure_world", "freed")}
_QUANT, _CONTEXT = "q4_0", 1024
_PROMPT = "abcdefgh"  # computing it takes little: what is measured is memory


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One switch, in seconds."""

    ttft: float
    wait: float  # of compute, for memory to come back
    bound: float


Samples = dict[tuple[str, str], list[Sample]]  # by (program, model), a sample a round


def measure(store: Path, key: Path, models: Sequence[str], *, cap: int, rounds: int) -> Samples:
    """Return the samples of switching between the `models` of `store` in `cap` bytes."""
    samples: Samples = {}
    with ExitStack() as stack:
        worlds = {
            name: stack.enter_context(
                DrivenWorld(SecureOptions(store, key, context=_CONTEXT), program=program, budget=cap)
            )
            for name, program in PROGRAMS.items()
        }
        for number in range(-1, rounds):  # the first round is thrown away
            print(f"switch: round {number + 1} of {rounds}", file=sys.stderr, flush=True)  # noqa: T201
            for name, world in worlds.items():
                found = _round(world, models)
                if number >= 0:
                    for model, sample in found.items():
                        samples.setdefault((name, model), []).append(sample)
    return samples


def _round(world: DrivenWorld, models: Sequence[str]) -> dict[str, Sample]:
    """Return a sample for each model."""
    for model in models:  # what the last one left is what the first one lacks
        world.warm(model)
    switched, computed = {}, {}
    for model in models:
        switched[model] = _ask(world, model)
        computed[model] = _timed(world, lambda model=model: _ask(world, model))  # type: ignore[misc]
    cores = len(os.sched_getaffinity(0))
    found = {}
    for model in models:
        restoring = (switched[model].load + switched[model].decrypt) / 1000
        compute, cpu = computed[model]
        bound = max(restoring / cores, compute.ttft / 1000, (restoring + cpu) / cores)
        found[model] = Sample(switched[model].ttft / 1000, switched[model].restore / 1000, bound)
    return found


def _ask(world: DrivenWorld, model: str) -> Timings:
    return world.generate(model, _PROMPT, 1).finished.timings


def _timed(world: DrivenWorld, work: Callable[[], Timings]) -> tuple[Timings, float]:
    """Do `work`; return what it returns, and the CPU seconds of the world's process."""
    before = cpu_seconds(world.pid)
    return work(), cpu_seconds(world.pid) - before


def table(samples: Samples) -> str:
    """Return the medians as a Markdown table."""
    lines = [
        "| to | first token, freed | moved | faster | wait, freed | moved | shorter | over the bound |",
        "|---" * 8 + "|",
    ]
    for model in dict.fromkeys(model for _, model in samples):
        freed, moved = samples["freed", model], samples["moved", model]
        pairs = list(zip(freed, moved, strict=True))
        cells = [
            f"{statistics.median(s.ttft for s in freed):.3f} s",
            f"{statistics.median(s.ttft for s in moved):.3f} s",
            f"{statistics.median(f.ttft / m.ttft for f, m in pairs):.2f} ×",
            f"{statistics.median(s.wait for s in freed):.3f} s",
            f"{statistics.median(s.wait for s in moved):.3f} s",
            f"{statistics.median(f.wait / m.wait for f, m in pairs):.2f} ×",
            f"{statistics.median(s.ttft / s.bound for s in moved):.2f} ×",
        ]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="flexserve.bench.switch", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cap", type=int, default=720, help="MiB that both models share")
    parser.add_argument("--large", default="tinyllama-1.1b", choices=SHAPES)
    parser.add_argument("--small", default="qwen2.5-0.5b", choices=SHAPES)
    options = parser.parse_args()
    models = (options.large, options.small)
    with tempfile.TemporaryDirectory(prefix="flexserve-switch-", dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        store = Store(folder / "store", DeviceKey.load_or_create(folder / "key"))
        for model in models:
            write_synthetic(folder / "model.gguf", SHAPES[model], _QUANT)
            store.add(folder / "model.gguf", model, lambda _done, _all: None)
            (folder / "model.gguf").unlink()
        samples = measure(
            folder / "store", folder / "key", models, cap=options.cap * MIB, rounds=options.rounds
        )
    sys.stdout.write(table(samples) + "\n")


if __name__ == "__main__":
    main()
