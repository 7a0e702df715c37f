"""How fast weights come from the guest's disk: `python …/inside_disk_speed.py [ROUNDS [SHAPE QUANT]]`.

On a quiet host, after `make trusted-app`. Emulated: it says how the emulator does. Two machines have the
demo's model, or a synthetic one: a machine as the product has it, and one without a disk, to which the same
weights go in messages. In turns, all memory is recalled, and the weights are brought in. CPU time of the
emulator and of the client is said, too: beside other work of the host, only that says anything.
"""

from __future__ import annotations

import os
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
    spent = dict[str, list[float]](disk=[], messages=[])
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
                seconds, cpu = _brought_in(core, world)
                found[name].append(seconds)
                spent[name].append(cpu)
            print(
                *(f"{name} {found[name][-1]:.2f} s, CPU {spent[name][-1]:.2f} s" for name in found),
                flush=True,
            )
        print(own.machine.agent.ask("flexmem"))
    for what, values in (("time", found), ("CPU", spent)):
        for name, each in values.items():
            print(
                f"{what}, {name}: median {statistics.median(each):.2f} s, {min(each):.2f} to {max(each):.2f}"
            )
        ratios = [slow / fast for fast, slow in zip(values["disk"], values["messages"], strict=True)]
        print(f"{what}, messages/disk: median {statistics.median(ratios):.2f}")


def _brought_in(core: InnerCore, world: DrivenWorld) -> tuple[float, float]:
    """Have all memory recalled; return the seconds until the weights are there again, of time and of CPU."""
    world.recall(None, 60_000)
    while core.machine.monitor().pages["RECALLING"]:
        time.sleep(0.05)
    before = _cpu(core.machine.pid) + _cpu(world.pid)
    finished = world.warm("it")
    assert finished.timings.restored_bytes > 0
    return finished.timings.restore / 1000, _cpu(core.machine.pid) + _cpu(world.pid) - before


def _cpu(pid: int) -> float:
    """Return the seconds of CPU that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        gguf = MODEL
        if len(sys.argv) > 3:
            write_synthetic(gguf := Path(name) / "model.gguf", SHAPES[sys.argv[2]], sys.argv[3])
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 9, gguf, Path(name) / "library")
