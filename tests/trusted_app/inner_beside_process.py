"""What it costs to compute at S-EL0: `inner_beside_process.py [ROUNDS [THREADS [BOOTARGS]]]`, run by python.

After `make trusted-app`. Emulated: it says how the emulator does. Two machines stand beside each other: in
one the demo's model computes at S-EL0, in the other one the same file does so as a process of the guest. Both
have all weights in memory. They take in a prompt and answer in turns, so the ratios hold on a busy host, too.
Of S-EL0 it is told how often an interrupt of the guest took a CPU back, and how many CPUs were lent.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import time
from pathlib import Path

from inner_application import MODEL, QUESTION, ROOT, Application, provide
from inner_models import Opened
from inner_unprotected import Unprotected
from test_inner_on_a_machine import CHUNKS, RAM, AtSEl0

from flexserve.emulator import trusted_app
from flexserve.emulator.build import Options
from flexserve.emulator.machine import Machine
from flexserve.harness.inner import SealedFile
from flexserve.protocol.trusted_app import Kind
from flexserve.tee_client.messages import Ask, Finish
from flexserve.testing.machines import booted
from flexserve.trusted.store.keys import DeviceKey
from flexserve.trusted.store.sealing import seal_file

PROMPT = QUESTION * 12
MOST = 60  # tokens


@dataclasses.dataclass
class Side:
    """One of the two machines."""

    name: str
    machine: Machine
    model: Opened

    def measure(self) -> dict[str, float]:
        """Return the speed of prompt and answer (tokens a second), and how CPUs were lent meanwhile."""
        tokens = self.model.tokenise(PROMPT)
        self.model.do(Ask.EVICT, Kind.KV)
        self.model.begin(tokens, most=MOST)
        before, began = self.machine.agent.ask("flexmem"), time.perf_counter()
        self.model.step(0)
        first, more = time.perf_counter(), 1
        while self.model.step(0)[0].finished is Finish.NO:
            more += 1
        ended, after = time.perf_counter(), self.machine.agent.ask("flexmem")
        self.model.do(Ask.END, 0)
        found = {"prompt": len(tokens) / (first - began), "answer": more / (ended - first)}
        lent = after["lent_ns"] - before["lent_ns"]
        if lent:
            found["interrupts a second"] = (after["interrupted"] - before["interrupted"]) / (ended - began)
            found["lent CPUs"] = lent / 1e9 / (ended - began)
        return found


def main(rounds: int, threads: int, bootargs: str) -> None:
    """Print each round, and the medians of ratios."""
    programs = trusted_app.built(trusted_app.default_cache())
    if programs is None:
        sys.exit("The trusted application is not built of these sources. Run `make trusted-app`.")
    options = Options(bootargs=bootargs)  # of the guest's kernel
    with tempfile.TemporaryDirectory() as folder:
        seal_file(
            MODEL, path := Path(folder) / "tiny.flex", "tiny", DeviceKey(ROOT), lambda _done, _total: None
        )
        sealed = SealedFile.read(path, DeviceKey(ROOT))
        with (
            booted(RAM, application=programs.application, secret=ROOT, options=options) as inside,
            booted(RAM, unprotected=programs.application) as outside,
        ):
            secure: Application = AtSEl0(inside, threads=threads)
            secure.do(Ask.GRANT, CHUNKS)
            secure.do(Ask.HEAP, CHUNKS // 2, 1)
            process: Application = Unprotected(outside, threads=threads)
            provide(process)
            sides = [
                Side("S-EL0", inside, _written(secure, sealed)),
                Side("process", outside, _written(process, sealed)),
            ]
            ratios = dict[str, list[float]]()
            for number in range(rounds):
                turn = sides if number % 2 == 0 else sides[::-1]
                found = {side.name: side.measure() for side in turn}
                print(found, flush=True)
                for what in ("prompt", "answer"):
                    ratios.setdefault(what, []).append(found["S-EL0"][what] / found["process"][what])
    for what, values in ratios.items():
        print(f"{what}: S-EL0 has {statistics.median(values):.2f} of a process's speed (median of {rounds})")


def _written(app: Application, sealed: SealedFile) -> Opened:
    model = Opened(app, sealed)
    model.write()
    return model


if __name__ == "__main__":
    given = sys.argv[1:]
    rounds, threads = (int(each) for each in (given + ["6", "1"][len(given) :])[:2])
    main(rounds, threads, " ".join(given[2:]))
