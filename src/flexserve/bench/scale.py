"""What a request, a recall, `ps` and idleness cost, by the number of models and of clients.

    python -m flexserve.bench.scale [--models 1,10,100] [--clients 1,4,16,64] [--rounds N] [--json]
                                    [--plot FILE]

One server for each number of models in its store, all the same small one of random weights; within a
round each has its turn. A request is a short answer of a model that is in memory. Costs are CPU seconds
of both worlds, which other programs change little, and wall-clock time beside. Clients are counted at
the server with the fewest models: each asks one request after the other.

A row is *flat* when cost grows with less than the fifth power root of the number, *linear* up to its
power 1.15, else *worse*: by the exponent between the smallest number and the largest.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from flexserve.bench import drawing
from flexserve.errors import FlexServeError
from flexserve.harness.served import Served, own_environment
from flexserve.harness.shapes import SHAPES
from flexserve.harness.synth import write_synthetic
from flexserve.normal.address import Address
from flexserve.normal.client import Client
from flexserve.protocol.prompts import ChatMessage
from flexserve.protocol.sampling import Sampling
from flexserve.trusted.store.keys import DeviceKey
from flexserve.trusted.store.store import Store
from flexserve.units import MIB

_SHAPE, _QUANT = "small-llama", "q4_0"
_PROMPT, _TOKENS = "abcdefgh", 4
_TIMES = 10  # that a thing is done for one sample …
_TIMES_BESIDE = 4  # … and beside clients, where it waits for them
_FLAT, _LINEAR = 0.2, 1.15  # exponents
_TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """What one request, recall or `ps` cost: seconds of CPU in both worlds, and by the clock."""

    cpu: float
    wall: float


class Server:
    """A server whose store has `count` models."""

    def __init__(self, stack: ExitStack, folder: Path, model: Path, count: int, memory: str) -> None:
        folder.mkdir()
        environment = own_environment(folder)
        store = folder / "data" / "flexserve" / "models"
        key = folder / "config" / "flexserve" / "device.key"
        sealed = Store(store, DeviceKey.load_or_create(key))
        self.names = [f"model-{number:03}" for number in range(count)]
        for name in self.names:
            sealed.add(model, name, lambda _done, _all: None)
        arguments = ("--memory", memory, "--threads", "1", "--max-queue", "256", "--context", "256")
        served = stack.enter_context(Served(environment, folder / "server.log", arguments))
        self.address = Address("127.0.0.1", served.port)
        self.client = stack.enter_context(Client(self.address))
        self.pids = [served.pid, self.client.states().os.secure_pid or 0]

    def ask(self, name: str, client: Client | None = None) -> None:
        """Have one request answered."""
        prompt, sampling = [ChatMessage("user", _PROMPT)], Sampling(max_tokens=_TOKENS, temperature=0)
        for _ in (client or self.client).ask(name, prompt, sampling):
            pass

    def recall(self) -> None:
        """Take back all there is, after a request."""
        self.client.recall(None, deadline_ms=10_000)

    def idle_bytes(self) -> int:
        """Return what both processes have in memory, as the OS counts it, after a recall of everything."""
        self.recall()
        page = os.sysconf("SC_PAGE_SIZE")
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page for pid in self.pids)

    def cost(self, work: Callable[[], None], times: int = _TIMES, requests: int = 1) -> Sample:
        """Do `work`, which is `requests` things, so often; return what one of them cost."""
        cpu, wall = self._cpu(), time.perf_counter()
        for _ in range(times):
            work()
        wall, cpu = time.perf_counter() - wall, self._cpu() - cpu
        return Sample(cpu / times / requests, wall / times / requests)

    def _cpu(self) -> float:
        ticks = 0
        for pid in self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks * _TICK


def measure(
    models: Sequence[int], clients: Sequence[int], *, rounds: int, memory: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return the report: medians of all rounds, and how each cost grows."""
    samples: dict[tuple[str, int], list[Sample]] = {}
    idle: dict[int, list[int]] = {}
    with tempfile.TemporaryDirectory(prefix="flexserve-scale-") as name, ExitStack() as stack:
        folder = Path(name)
        model = folder / "model.gguf"
        write_synthetic(model, SHAPES[_SHAPE], _QUANT)
        servers = {count: Server(stack, folder / str(count), model, count, memory) for count in models}
        for server in servers.values():  # the first time, an image is made
            server.ask(server.names[0])
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for count, server in servers.items():
                for what, sample in _by_models(server).items():
                    samples.setdefault((what, count), []).append(sample)
                idle.setdefault(count, []).append(server.idle_bytes())
            for count in clients:
                for what, sample in _by_clients(servers[min(models)], count).items():
                    samples.setdefault((what, count), []).append(sample)
    return {"rounds": rounds, "memory": memory, "rows": _rows(samples, idle, models, clients)}


def _by_models(server: Server) -> dict[str, Sample]:
    name = server.names[-1]
    server.ask(name)

    def ask_and_recall() -> None:
        server.ask(name)
        server.recall()

    warm = server.cost(lambda: server.ask(name))
    both = server.cost(ask_and_recall)
    server.ask(name)
    listing = server.cost(lambda: _listed(server))
    return {
        "request, by models": warm,
        "recall and restore, by models": Sample(max(0.0, both.cpu - warm.cpu), both.wall - warm.wall),
        "ps, by models": listing,
    }


def _by_clients(server: Server, count: int) -> dict[str, Sample]:
    name = server.names[0]
    server.ask(name)
    ending = threading.Event()

    def ask_on() -> None:
        with Client(server.address) as client, contextlib.suppress(FlexServeError):  # who measures hears it
            while not ending.is_set():
                server.ask(name, client)

    def ask_once() -> None:
        threads = [threading.Thread(target=_asking, args=(server, name), daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    asked = server.cost(ask_once, times=max(2, _TIMES // count), requests=count)
    others = [threading.Thread(target=ask_on, daemon=True) for _ in range(count)]
    for thread in others:
        thread.start()
    time.sleep(0.5)
    try:
        listing = server.cost(lambda: _listed(server), times=_TIMES_BESIDE)
        recall = server.cost(server.recall, times=_TIMES_BESIDE)
    finally:
        ending.set()
        for thread in others:
            thread.join()
    return {
        "request, by clients": asked,
        "ps beside clients": Sample(listing.wall, listing.wall),
        "recall beside clients": Sample(recall.wall, recall.wall),
    }


def _asking(server: Server, name: str) -> None:
    with Client(server.address) as client:
        server.ask(name, client)


def _listed(server: Server) -> None:
    server.client.states()


def _rows(
    samples: dict[tuple[str, int], list[Sample]],
    idle: dict[int, list[int]],
    models: Sequence[int],
    clients: Sequence[int],
) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for what in dict.fromkeys(what for what, _ in samples):
        numbers = clients if "clients" in what else models
        cpu = [statistics.median(sample.cpu for sample in samples[what, number]) for number in numbers]
        wall = [statistics.median(sample.wall for sample in samples[what, number]) for number in numbers]
        rows[what] = {"numbers": list(numbers), "cpu": cpu, "wall": wall, "growth": growth(numbers, cpu)}
    sizes = [statistics.median(idle[number]) for number in models]
    rows["idle memory, by models"] = {
        "numbers": list(models),
        "bytes": sizes,
        "growth": growth(models, sizes),
    }
    return rows


def growth(numbers: Sequence[int], costs: Sequence[float]) -> str:
    """Return how `costs` grow with `numbers`, which ascend: flat, linear or worse."""
    if len(numbers) < 2 or costs[0] <= 0 or costs[-1] <= costs[0]:
        return "flat"
    exponent = math.log(costs[-1] / costs[0]) / math.log(numbers[-1] / numbers[0])
    return "flat" if exponent < _FLAT else "linear" if exponent <= _LINEAR else "worse"


def as_text(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table."""
    lines = ["| cost of one | at | CPU | by the clock | grows |", "|---|---|---|---|---|"]
    for what, row in report["rows"].items():
        at = " / ".join(map(str, row["numbers"]))
        if "bytes" in row:
            cpu, wall = "–", " / ".join(f"{size / MIB:.0f}" for size in row["bytes"]) + " MiB"
        else:
            cpu, wall = (" / ".join(f"{1000 * s:.1f}" for s in row[key]) + " ms" for key in ("cpu", "wall"))
        lines.append(f"| {what} | {at} | {cpu} | {wall} | {row['growth']} |")
    return "\n".join(lines)


_COLOURS = {"request": "#2b6cb0", "recall": "#dd6b20", "ps": "#2f855a", "idle": "#9b2c2c"}  # in both panels


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw all rows of `report`, each over its cost at the smallest number, into `path`."""
    pyplot = drawing.pyplot()
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for axes, kind in zip(panels, ("models", "clients"), strict=True):
        numbers: list[int] = []
        for what, row in report["rows"].items():
            if kind in what:
                numbers, costs = row["numbers"], row.get("cpu") or row["bytes"]
                label = what.replace(f", by {kind}", "").replace(" beside clients", ", waiting for it")
                colour = _COLOURS[what.replace(",", "").split()[0]]
                axes.plot(numbers, [cost / costs[0] for cost in costs], "o-", color=colour, label=label)
        axes.plot(numbers, [number / numbers[0] for number in numbers], "--", color="#9aa5b1", label="linear")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(numbers, [str(number) for number in numbers])
        axes.minorticks_off()
        axes.set_xlabel({"models": "models in the store", "clients": "clients at once"}[kind])
        axes.set_ylabel(f"cost of one, over that with {numbers[0]}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _counts(text: str) -> list[int]:
    return sorted(int(word) for word in text.split(","))


def main() -> int:
    """Measure and print; return the exit status: 1 when something grows worse than linearly."""
    parser = argparse.ArgumentParser(prog="python -m flexserve.bench.scale", description=__doc__)
    parser.add_argument("--models", type=_counts, default=[1, 10, 100], metavar="N,N,…")
    parser.add_argument("--clients", type=_counts, default=[1, 4, 16, 64], metavar="N,N,…")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", choices=["secret", "plain"], default="secret")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    try:
        report = measure(given.models, given.clients, rounds=given.rounds, memory=given.memory, say=_say)
    except FlexServeError as error:
        _say(f"error: {error}")
        return 1
    if given.plot:
        plot(report, given.plot)
    sys.stdout.write((json.dumps(report) if given.json else as_text(report)) + "\n")
    return any(row["growth"] == "worse" for row in report["rows"].values())


def _say(what: str) -> None:
    sys.stderr.write(f"scale: {what}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
