"""How fast weights come from the guest's disk: `python …/inside_disk_speed.py [ROUNDS [SHAPE QUANT]]`.

On a quiet host, after `make trusted-app`. Emulated: it says how the emulator does. Two machines have the
demo's model, or a synthetic one: a machine as the product has it, and one without a disk, to which the same
weights go in messages. In turns, all memory is recalled, and the weights are brought in.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from conversations import MODEL
from inside_machines import client_of, machines
from library import Library

from flexserve.emulator.inner_core import InnerCore
from flexserve.harness.shapes import SHAPES
from flexserve.harness.synth import write_synthetic
from flexserve.harness.worlds import DrivenWorld
from flexserve.units import MIB

BESIDE = 384 * MIB  # of a machine: for its kernel, and for KV, scratch and heap


def main(rounds: int, gguf: Path, folder: Path) -> None:
    """Print each round, and the medians."""
    library = Library(folder)
    library.add(gguf, "it")
    ram = -(-(BESIDE + gguf.stat().st_size * 5 // 4) // (64 * MIB)) * 64 * MIB
    found = dict[str, list[float]](disk=[], messages=[])
    with (
        machines(library, ram=ram) as own,
        machines(library, ram=ram, with_disk=False) as other,
        client_of(own, library) as by_disk,
        client_of(other, library) as by_messages,
    ):
        for world in (by_disk, by_messages):
            world.warm("it")  # an image is made
        for _ in range(rounds):
            for name, core, world in (("disk", own, by_disk), ("messages", other, by_messages)):
                found[name].append(_brought_in(core, world))
            print("  ".join(f"{name} {values[-1]:.2f} s" for name, values in found.items()), flush=True)
        print(own.machine.agent.ask("flexmem"))
    for name, values in found.items():
        print(f"{name}: median {statistics.median(values):.2f} s, {min(values):.2f} to {max(values):.2f}")
    ratios = [slow / fast for fast, slow in zip(found["disk"], found["messages"], strict=True)]
    print(f"messages/disk: median {statistics.median(ratios):.2f}")


def _brought_in(core: InnerCore, world: DrivenWorld) -> float:
    """Have all memory recalled; return the seconds until the weights are there again."""
    world.recall(None, 60_000)
    while core.machine.monitor().pages["RECALLING"]:
        time.sleep(0.05)
    finished = world.warm("it")
    assert finished.timings.restored_bytes > 0
    return finished.timings.restore / 1000


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        gguf = MODEL
        if len(sys.argv) > 3:
            write_synthetic(gguf := Path(name) / "model.gguf", SHAPES[sys.argv[2]], sys.argv[3])
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 9, gguf, Path(name) / "library")
