"""What a pipeline saves: `inner_pipeline_speed.py [ROUNDS [SHAPE QUANT [TOKENS]]]`, run by python.

After `make trusted-app`. Emulated: it says how the emulator does. A model at S-EL0 of which nothing is in
memory computes a prompt, in three ways in turns, so the ratios hold on a busy host, too: its chunks come one
by one, then it computes; several are on their way at once, so two are decrypted; and so while it computes.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from inner_application import ROOT, Application
from inner_models import Opened
from test_inner_on_a_machine import AtSEl0

from flexserve.emulator import trusted_app
from flexserve.harness.inner import Image, SealedFile
from flexserve.harness.shapes import SHAPES
from flexserve.harness.synth import write_synthetic
from flexserve.tee_client.messages import Ask, Reply, Status, packed, unpacked
from flexserve.testing.machines import booted
from flexserve.trusted.store.keys import DeviceKey
from flexserve.trusted.store.sealing import seal_file
from flexserve.units import MIB

CPUS, AT_ONCE = 2, 3
BESIDE = 256 * MIB  # for the guest and its kernel
HEAP, MORE = (
    40,
    60,
)  # chunks: for a vocabulary of some thousand words; for KV, scratch, and what is written twice


class Measured:
    """A model of which nothing is in memory before each way."""

    def __init__(self, app: Application, file: SealedFile, tokens: int) -> None:
        self._model = Opened(app, file)
        app.do(Ask.GRANT, self._model.chunks + MORE)
        self._model.write()
        self._image: Image = self._model.seal()
        self._model.do(Ask.IMAGE, payload=self._image.salt)
        self._prompt = [3 + number % 1000 for number in range(tokens)]
        self._said: set[tuple[int, ...]] = set()
        self.ways: dict[str, Callable[[], float]] = {
            "one by one": self._one_by_one,
            "several": self._several,
            "pipeline": self._pipeline,
        }
        self._first(self._step)  # it knows the order of its chunks from here on
        self._order = unpacked(self._model.do(Ask.ORDER).payload)
        print(f"{len(self._order)} chunks, {sum(map(len, self._image.chunks)) / MIB:.0f} MiB", flush=True)

    def seconds(self, way: str) -> tuple[float, float]:
        """Return how long the first token took, and for how much of that computing stood waiting."""
        self._model.evict()
        began = time.perf_counter()
        waited = self._first(self.ways[way])
        return time.perf_counter() - began, waited

    def _first(self, way: Callable[[], float]) -> float:
        self._model.begin(self._prompt, most=2)
        waited = way()
        self._said.add(tuple(unpacked(self._model.do(Ask.SAID, 0).payload)))
        assert len(self._said) == 1, "it does not always say the same"
        self._model.do(Ask.END, 0)
        return waited

    def _step(self, *waits: int) -> float:
        reply = self._model.do(Ask.STEP, len(self._prompt), *waits, payload=packed([0]))
        return reply.values[0] / 1e6

    def _load(self, chunk: int) -> Reply:
        reply = self._model.do(Ask.LOAD, chunk, payload=self._image.chunks[chunk])
        assert reply.status is Status.DONE
        return reply

    def _one_by_one(self) -> float:
        for chunk in self._order:
            self._load(chunk)
        return self._step()

    def _several(self) -> float:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            _all(threads.map(self._load, self._order))
        return self._step()

    def _pipeline(self) -> float:
        with ThreadPoolExecutor(AT_ONCE + 1) as threads:
            step = threads.submit(self._step, 1)
            with ThreadPoolExecutor(AT_ONCE) as loaders:
                _all(loaders.map(self._load, self._order))
            return step.result()


def _all(replies: Iterable[Reply]) -> None:
    for _ in replies:
        pass


def main(rounds: int, shape: str, quant: str, tokens: int) -> None:
    """Print each round, and the medians of ratios within a round."""
    programs = trusted_app.built(trusted_app.default_cache())
    if programs is None:
        sys.exit("The trusted application is not built of these sources. Run `make trusted-app`.")
    with tempfile.TemporaryDirectory() as name:
        gguf, path, device = Path(name) / "model.gguf", Path(name) / "model.flex", DeviceKey(ROOT)
        write_synthetic(gguf, SHAPES[shape], quant)
        seal_file(gguf, path, "model", device, lambda _done, _total: None)
        ram = -(-(BESIDE + 2 * gguf.stat().st_size + (HEAP + MORE) * 2 * MIB) // (64 * MIB)) * 64 * MIB
        with booted(ram, CPUS, application=programs.application, secret=ROOT) as machine:
            app = AtSEl0(machine, threads=1)
            app.do(Ask.GRANT, HEAP)
            app.do(Ask.HEAP, HEAP, 1)
            measured = Measured(app, SealedFile.read(path, device), tokens)
            found: dict[str, list[float]] = {way: [] for way in measured.ways}
            for _ in range(rounds):
                for way, values in found.items():
                    seconds, waited = measured.seconds(way)
                    values.append(seconds)
                    print(f"{way} {seconds:.2f} s, waited {waited:.2f} s", end="  ", flush=True)
                print(flush=True)
    for way, values in found.items():
        ratio = statistics.median(one / mine for one, mine in zip(found["one by one"], values, strict=True))
        print(f"{way}: median {statistics.median(values):.2f} s; {ratio:.2f} times as fast as one by one")


if __name__ == "__main__":
    given = [*sys.argv[1:], *["3", "medium-qwen2", "q4_0", "64"][len(sys.argv) - 1 :]]
    main(int(given[0]), given[1], given[2], int(given[3]))
