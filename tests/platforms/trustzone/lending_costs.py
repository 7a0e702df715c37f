"""What it costs to lend a CPU: `python tests/platforms/trustzone/lending_costs.py [ROUNDS]`, on a quiet host.

Emulated: guest time is the host's. A round measures a RUN that comes back at once, beside an empty call, and
which share of a CPU a busy secure world has while the kernel has nothing else to do on it. The guest's tick
leaves CPU 1 alone, as in the product.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from machines import ask, booted
from secure_payload import Wish, payload
from test_world_switch import DEBUG, Lending, images_with

CALLS = 20_000
STEP = (
    1800  # of the counter, 29 µs, less than a RUN takes: a longer turn of a busy payload was not all its own
)
COUNTER = 62.5e6  # Hz
SECONDS = 1.0


def main(rounds: int) -> None:
    """Print each round, and the medians."""
    found: dict[str, list[float]] = {
        "empty call, µs": [],
        "RUN, µs": [],
        "share, 1 CPU": [],
        "share, 2 CPUs": [],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = payload(folder)
        with booted(
            cpus=2, bootargs="nohz_full=1", alter=lambda images: images_with(images, image, folder)
        ) as machine:
            lending = Lending(machine)
            for _ in range(rounds):
                row = (*calls(lending), share(lending, 1), share(lending, 2))
                print(
                    "  ".join(f"{name} {value:.3f}" for name, value in zip(found, row, strict=True)),
                    flush=True,
                )
                for values, value in zip(found.values(), row, strict=True):
                    values.append(value)
    for name, values in found.items():
        print(f"{name}: median {statistics.median(values):.3f}, of {rounds}")


def calls(lending: Lending) -> tuple[float, float]:
    """Return what an empty call and a RUN of an idle secure world take, in microseconds."""
    lending.wish(Wish.IDLE, Wish.IDLE)
    ask(lending.machine, f"write {DEBUG}/lend 0")
    empty, run = (lending.attack(f"cost {what} {CALLS}")["ns"] / 1000 for what in ("empty", "run"))
    ask(lending.machine, f"write {DEBUG}/lend 1")
    return empty, run


def share(lending: Lending, cpus: int) -> float:
    """Return which share of the last `cpus` CPUs' time their payloads have."""
    blocks = lending.blocks[-cpus:]
    for block in blocks:
        block.wish(Wish.BUSY, STEP)
    lending.world.ring()
    time.sleep(0.2)
    before, began = sum(block.ticks for block in blocks), time.monotonic()
    time.sleep(SECONDS)
    ticks, seconds = sum(block.ticks for block in blocks) - before, time.monotonic() - began
    for block in blocks:
        block.wish(Wish.IDLE)
    return ticks / (seconds * COUNTER * cpus)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
