"""Many clients at once, beside another server of the same model: tokens a second, and time to first token.

    python -m flexserve.bench.clients FILE.gguf --beside URL [--clients 1,8,32] [--rounds 5]

URL is of any server that has the OpenAI API and serves the same file, such as llama-server with as many
slots as there are clients. FILE is served by a FlexServe of its own, which has as many. In each round and
for each number of clients, both are asked the same, one after the other, in turns of who is first: every
client streams an answer to a prompt of its own, then asks again with that answer and some words more in its
prompt, most of which a server need not compute again. Prints a table of medians with the lowest and the
highest sample, and the median of ratios within a round.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from flexserve.errors import FlexServeError, PeerError
from flexserve.harness.served import FLEXSERVE, Served, own_environment

_MAX_PARALLEL = 64  # as `flexserve serve` has it
_PATIENCE = 600.0  # seconds without a byte on a stream
_WORDS = 60  # of a prompt
_MORE = " and then what"
_OURS, _OTHER = "FlexServe", "the other"

Samples = dict[tuple[int, str, str], list["Turn"]]  # by clients, "new" or "continued", and server


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """What all clients together saw of one question each."""

    rate: float  # tokens a second, of all, from the first question to the last answer
    first: float  # seconds to the first token, the median of the clients'


@dataclasses.dataclass(frozen=True, slots=True)
class _Answer:
    text: str
    tokens: int
    first: float  # seconds


class Server:
    """One of the servers that are compared, reached through `http`."""

    def __init__(self, name: str, http: httpx.AsyncClient) -> None:
        self.name, self._http = name, http
        self._model = ""

    async def ask_all(self, prompts: Sequence[str], tokens: int) -> tuple[Turn, list[str]]:
        """Ask all `prompts` at once; return what was seen, and the answers."""
        began = time.perf_counter()
        answers = await asyncio.gather(*(self._ask(prompt, tokens) for prompt in prompts))
        seconds = time.perf_counter() - began
        turn = Turn(
            sum(answer.tokens for answer in answers) / seconds,
            statistics.median(answer.first for answer in answers),
        )
        return turn, [answer.text for answer in answers]

    async def _ask(self, prompt: str, tokens: int) -> _Answer:
        body = {
            "model": await self._served(),
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began, first, parts, count = time.perf_counter(), 0.0, list[str](), 0
        async with self._http.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                said = (await response.aread()).decode("utf-8", "replace")
                raise PeerError(f"{self.name} refused: {said[:500]}", hint="See what it says.")
            async for line in response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line[6:])
                if event.get("choices"):
                    first = first or time.perf_counter() - began
                    parts.append(event["choices"][0]["text"])
                if event.get("usage"):
                    count = event["usage"]["completion_tokens"]
        if not count:
            raise PeerError(f"{self.name} answered nothing.", hint="Ask it yourself, and see its log.")
        return _Answer("".join(parts), count, first)

    async def _served(self) -> str:
        if not self._model:
            self._model = (await self._http.get("/v1/models")).json()["data"][0]["id"]
        return self._model


async def measure(servers: Sequence[Server], clients: Sequence[int], rounds: int, tokens: int) -> Samples:
    """Return what each server showed; a round more than `rounds` comes first and is not counted."""
    samples: Samples = {}
    serial = itertools.count()  # no prompt is asked twice
    for number in range(rounds + 1):
        for count in clients:
            sys.stderr.write(f"clients: round {number} of {rounds}, {count} at once\n")
            prompts = [_prompt(next(serial)) for _ in range(count)]
            for server in servers if number % 2 else reversed(servers):
                new, answers = await server.ask_all(prompts, tokens)
                longer = [prompt + answer + _MORE for prompt, answer in zip(prompts, answers, strict=True)]
                continued, _ = await server.ask_all(longer, tokens)
                if number:
                    samples.setdefault((count, "new", server.name), []).append(new)
                    samples.setdefault((count, "continued", server.name), []).append(continued)
    return samples


def _prompt(number: int) -> str:
    return f"{number}: " + " ".join(f"word{(number * 7919 + place * 31) % 997}" for place in range(_WORDS))


def table(samples: Samples, ours: str, other: str) -> str:
    """Return a Markdown table; the ratios are ours to the other's, within a round."""
    lines = [
        f"| clients | prompt | {ours}, tok/s | {other}, tok/s | ratio "
        f"| {ours}, TTFT | {other}, TTFT | ratio |",
        "|---" * 8 + "|",
    ]
    for clients, prompt in dict.fromkeys(key[:2] for key in samples):
        pair = samples[clients, prompt, ours], samples[clients, prompt, other]
        rates = [[turn.rate for turn in turns] for turns in pair]
        firsts = [[turn.first for turn in turns] for turns in pair]
        cells = [str(clients), prompt]
        for ones, unit in ((rates, ""), (firsts, " s")):
            cells += [f"{statistics.median(one):.3g}{unit} ({min(one):.3g}–{max(one):.3g})" for one in ones]
            cells.append(f"{statistics.median(a / b for a, b in zip(*ones, strict=True)):.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


async def _compare(url: str, beside: str, options: argparse.Namespace) -> Samples:
    async with _connected(url) as ours, _connected(beside) as others:
        servers = Server(_OURS, ours), Server(_OTHER, others)
        return await measure(servers, options.clients, options.rounds, options.tokens)


def _connected(url: str) -> httpx.AsyncClient:
    # Each question has a connection of its own: a server may end one that has been idle.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(_PATIENCE), limits=limits)


def _counts(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main() -> int:
    """Measure as told by the command line, and print; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m flexserve.bench.clients",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="FILE.gguf")
    parser.add_argument("--beside", metavar="URL", required=True)
    parser.add_argument("--clients", type=_counts, default=[1, 8, 32], metavar="N,N,…")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flexserve-clients-") as name:
        environment = own_environment(Path(name))
        add = [*FLEXSERVE, "add", str(options.model), "--name", "model"]
        if subprocess.run(add, env=environment, check=False, stdout=subprocess.DEVNULL).returncode:
            return 1  # it has said why
        most = max(options.clients)
        arguments = ("--max-queue", str(2 * most), "--parallel", str(min(most, _MAX_PARALLEL)))
        try:
            with Served(environment, Path(name) / "log", arguments) as server:
                samples = asyncio.run(_compare(server.url, options.beside, options))
                server.stop()
        except (FlexServeError, httpx.HTTPError) as error:
            sys.stderr.write(f"error: {error}\n")
            return 1
    sys.stdout.write(table(samples, _OURS, _OTHER) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
