"""What sealing costs: `flexserve connect` beside the same server asked directly.

    python -m flexserve.bench.sealed [MODEL.gguf] [--rounds 200] [--tokens 64]

Both run on this machine, so the network costs nothing and each hop shows. In a round the same question goes
both ways, in turns of which is first, over connections that are kept. Prints percentiles of the time to the
first token and to the last, what sealing adds to them, the ratio of tokens a second, and the CPU time of all
processes on the way. The last says what sealing costs on a machine that has other work, too.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from flexserve.bench.demo import DEFAULT_MODEL
from flexserve.bench.measure import cpu_seconds
from flexserve.errors import FlexServeError, PeerError
from flexserve.harness.served import FLEXSERVE, Served, own_environment

WARM_UP = 5  # rounds that are not counted
_NAME = "model"
_PATIENCE = 300.0  # seconds


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One answer: seconds to its first token and to its end, tokens a second between the two.

    `cpu`: seconds that all processes on the way computed for it; the OS counts in hundredths.
    """

    first: float
    whole: float
    rate: float
    cpu: float = 0.0


def ask(http: httpx.Client, number: int, tokens: int) -> Sample:
    """Stream the answer to question `number`. Raises PeerError when there is none."""
    body = {
        "model": _NAME,
        "prompt": f"{number:06}: The secure world",
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
        "flexserve": {"reuse": False},
    }
    began, first, last = time.perf_counter(), 0.0, 0.0
    with http.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            said = answer.read().decode("utf-8", "replace")
            raise PeerError(f"The server refused: {said[:500]}", hint="See what it says.")
        for line in answer.iter_lines():
            if line.startswith("data: {") and json.loads(line[6:]).get("choices"):
                last = time.perf_counter()
                first = first or last
    whole = time.perf_counter() - began
    if last <= first:
        raise PeerError("The answer has no two tokens.", hint="Give --tokens 8 at least.")
    return Sample(first - began, whole, (tokens - 1) / (last - first))


def measure(
    direct: httpx.Client, sealed: httpx.Client, rounds: int, tokens: int, programs: Sequence[int]
) -> tuple[list[Sample], list[Sample]]:
    """Return the samples of both ways, round by round. `programs`: those on the way, by process id."""
    samples: tuple[list[Sample], list[Sample]] = [], []
    ways = list(zip((direct, sealed), samples, strict=True))
    for number in range(WARM_UP + rounds):
        for http, kept in ways if number % 2 else reversed(ways):
            before = cpu_of(programs)
            sample = ask(http, number, tokens)
            if number >= WARM_UP:
                kept.append(dataclasses.replace(sample, cpu=cpu_of(programs) - before))
    return samples


def cpu_of(programs: Sequence[int]) -> float:
    """Return the CPU seconds of `programs` and all that they started, as far as it lives."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = set(programs)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    total = 0.0
    for pid in found:
        with contextlib.suppress(OSError):
            total += cpu_seconds(pid)
    return total


def table(direct: Sequence[Sample], sealed: Sequence[Sample]) -> str:
    """Return a Markdown table; times in milliseconds. The ratio is the median of ratios within a round."""
    lines = ["| | direct | sealed | difference |", "|---|---|---|---|"]
    for name, field in (("first token", "first"), ("whole answer", "whole")):
        for percent in (50, 99):
            both = [
                1000 * percentile([getattr(s, field) for s in ones], percent) for ones in (direct, sealed)
            ]
            lines.append(
                f"| {name}, p{percent}, ms | {both[0]:.2f} | {both[1]:.2f} | {both[1] - both[0]:+.2f} |"
            )
    added = [1000 * (s.first - d.first) for d, s in zip(direct, sealed, strict=True)]
    lines.append(
        f"| added to the first token within a round, ms | | | median {statistics.median(added):+.2f} |"
    )
    rates = [percentile([s.rate for s in ones], 50) for ones in (direct, sealed)]
    ratio = statistics.median(s.rate / d.rate for d, s in zip(direct, sealed, strict=True))
    lines.append(f"| tokens a second, median | {rates[0]:.1f} | {rates[1]:.1f} | ratio {ratio:.3f} |")
    used = [1000 * statistics.mean(s.cpu for s in ones) for ones in (direct, sealed)]
    lines.append(
        f"| CPU time an answer, mean, ms | {used[0]:.2f} | {used[1]:.2f} | {used[1] - used[0]:+.2f} |"
    )
    return "\n".join(lines)


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the value that `percent` of a hundred `values` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def _measured(folder: Path, model: Path, rounds: int, tokens: int) -> str:
    environment = own_environment(folder)
    add = [*FLEXSERVE, "add", str(model), "--name", _NAME]
    subprocess.run(add, env=environment, check=True, stdout=subprocess.DEVNULL)
    policy = folder / "policy.toml"
    policy.write_text('emulated = "allow"\n')
    with Served(environment, folder / "serve.log", ("--log-level", "error")) as server:
        arguments = ("--policy", str(policy), "--log-level", "error")
        command = ("connect", server.url)
        with (
            Served(environment, folder / "connect.log", arguments, command=command) as connected,
            httpx.Client(base_url=server.url, timeout=_PATIENCE) as direct,
            httpx.Client(base_url=connected.url, timeout=_PATIENCE) as sealed,
        ):
            programs = (server.pid, connected.pid)
            shown = table(*measure(direct, sealed, rounds, tokens, programs))
            connected.stop()
        server.stop()
    return shown


def main() -> int:
    """Measure as told by the command line, and print; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m flexserve.bench.sealed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, nargs="?", default=DEFAULT_MODEL, metavar="MODEL.gguf")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="flexserve-sealed-") as name:
            shown = _measured(Path(name), options.model, options.rounds, options.tokens)
    except (FlexServeError, httpx.HTTPError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(shown + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
