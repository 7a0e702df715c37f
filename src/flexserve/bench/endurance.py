"""Many clients, two models, and an OS that takes memory back all the time: does every word stay right?

    python -m flexserve.bench.endurance [--minutes 5] [--clients 64] [--kill SECONDS]

Each client streams conversations of two turns over HTTP, with an owner of its own; meanwhile
random amounts are recalled every 200 ms. What each turn must say was asked beforehand, one request at
a time and without reuse. With `--kill`, the secure world is killed that often: then requests may fail
with an error that says so, and nothing else. At the end everything is recalled, and both worlds'
accounts must agree on nothing.

Prints one JSON object; exits with 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from flexserve.bench.demo import DEFAULT_MODEL
from flexserve.harness.served import FLEXSERVE, Served, own_environment
from flexserve.units import MIB

MODELS = ("first", "second")
QUESTIONS = (
    "What is Flex-Mem?",
    "What is a chunk?",
    "What does the Flex-Monitor do?",
    "What is TTFT?",
)
_RECALL_EVERY = 0.2  # seconds
_RECALL_AT_MOST = 16 * MIB
_TOKENS = 48
_PATIENCE = 120.0  # seconds without a byte on a stream

_Message = dict[str, str]
_Script = tuple[str, str, str]  # model, first question, second question


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How long, how many, and how often the secure world is killed (seconds; None: never)."""

    seconds: float
    clients: int
    kill: float | None
    memory: str  # "secret" or "plain"


class Endurance:
    """One run against a server at `url`."""

    def __init__(self, url: str, plan: Plan) -> None:
        self._plan = plan
        limits = httpx.Limits(max_connections=plan.clients + 8)
        self._http = httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(_PATIENCE), limits=limits)
        self._expected: dict[_Script, tuple[str, str]] = {}
        self._random = random.Random(0)
        self._until = 0.0
        self.counts: Counter[str] = Counter()
        self.wrong: list[dict[str, Any]] = []

    async def run(self) -> dict[str, Any]:
        """Learn what is right, let all loose, and return the report."""
        async with self._http:
            await self._learn()
            began = time.monotonic()
            self._until = began + self._plan.seconds
            async with asyncio.TaskGroup() as group:
                for number in range(self._plan.clients):
                    group.create_task(self._client(number))
                group.create_task(self._recall())
                if self._plan.kill is not None:
                    group.create_task(self._kill(self._plan.kill))
            seconds = time.monotonic() - began
            left = await self._left_over()
        good = not self.wrong and left == 0 and self.counts["turns"] > 0
        if self._plan.kill is None:
            good = good and not self.counts["failed"]
        return {
            "good": good,
            "seconds": seconds,
            "clients": self._plan.clients,
            **self.counts,
            "bytes_left_after_recall_all": left,
            "wrong": self.wrong[:10],
        }

    async def _learn(self) -> None:
        """Ask every conversation once, alone, every turn computed whole."""
        for model in MODELS:
            for first in QUESTIONS:
                messages = [{"role": "user", "content": first}]
                answer, _ = await self._turn(model, messages, owner="oracle", reuse=False)
                for second in QUESTIONS:
                    more = [*messages, {"role": "assistant", "content": answer}]
                    more.append({"role": "user", "content": second})
                    text, _ = await self._turn(model, more, owner="oracle", reuse=False)
                    self._expected[model, first, second] = answer, text

    async def _client(self, number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() < self._until:
            script = chance.choice(MODELS), chance.choice(QUESTIONS), chance.choice(QUESTIONS)
            try:
                await self._converse(script, f"client {number}")
            except _Refusal as refusal:
                self.counts["failed"] += 1
                self.counts[f"failed: {refusal}"] += 1
                await asyncio.sleep(0.2)

    async def _converse(self, script: _Script, owner: str) -> None:
        model, *questions = script
        messages: list[_Message] = []
        for question, expected in zip(questions, self._expected[script], strict=True):
            messages.append({"role": "user", "content": question})
            text, cached = await self._turn(model, messages, owner=owner, reuse=True)
            self.counts["turns"] += 1
            self.counts["cached_tokens"] += cached
            if text != expected:
                self.wrong.append({"script": script, "expected": expected, "text": text})
            messages.append({"role": "assistant", "content": text})

    async def _turn(
        self, model: str, messages: list[_Message], *, owner: str, reuse: bool
    ) -> tuple[str, int]:
        """Stream one answer; return it and how many tokens of the prompt were not computed again."""
        body = {
            "model": model,
            "messages": messages,
            "max_tokens": _TOKENS,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "user": owner,
            "flexserve": {"reuse": reuse},
        }
        parts: list[str] = []
        cached, finished = 0, False
        try:
            async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    raise _Refusal(_reason(await response.aread()))
                async for line in response.aiter_lines():
                    if not line.startswith("data: "):
                        continue
                    if line == "data: [DONE]":
                        finished = True
                        break
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise _Refusal(event["error"]["code"])
                    parts += [choice["delta"].get("content") or "" for choice in event["choices"]]
                    if event.get("usage"):
                        cached = event["usage"]["prompt_tokens_details"]["cached_tokens"]
        except httpx.HTTPError as error:
            raise _Refusal(type(error).__name__) from None
        if not finished:
            raise _Refusal("a stream ended without [DONE]")
        return "".join(parts), cached

    async def _recall(self) -> None:
        while time.monotonic() < self._until:
            size = self._random.randint(1, _RECALL_AT_MOST)
            with contextlib.suppress(httpx.HTTPError):
                response = await self._http.post("/recall", json={"size": size})
                self.counts["recalls"] += 1
                self.counts["recalls_refused"] += response.status_code != 200
            await asyncio.sleep(_RECALL_EVERY)

    async def _kill(self, every: float) -> None:
        while True:
            await asyncio.sleep(every * self._random.uniform(0.5, 1.5))
            if time.monotonic() >= self._until - 5:
                return
            with contextlib.suppress(httpx.HTTPError, ProcessLookupError, KeyError):
                state = (await self._http.get("/models")).json()
                os.kill(state["os"]["secure_pid"], signal.SIGKILL)
                self.counts["kills"] += 1

    async def _left_over(self) -> int:
        """Recall everything; return what one of the worlds still counts."""
        await self._http.post("/recall", json={"size": None})
        state = (await self._http.get("/models")).json()
        memory = state["memory"]
        return int(memory["secure"] + memory["granted"] + memory["recalling"])


class _Refusal(Exception):  # noqa: N818
    """A request that ended in an error; the text is its code."""


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "an answer that is no error of ours"


def run(plan: Plan, model: Path = DEFAULT_MODEL) -> dict[str, Any]:
    """Serve `model` under two names from a folder made for this; return the report of a run."""
    with tempfile.TemporaryDirectory(prefix="flexserve-endurance-") as name:
        folder = Path(name)
        environment = own_environment(folder)
        for model_name in MODELS:
            command = [*FLEXSERVE, "add", str(model), "--name", model_name]
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        arguments = ("--memory", plan.memory, "--max-queue", str(2 * plan.clients), "--threads", "1")
        with Served(environment, folder / "server.log", arguments) as server:
            report = asyncio.run(Endurance(server.url, plan).run())
            server.stop()
        return report


def main() -> int:
    """Run as told by the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flexserve.bench.endurance", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--kill", type=float, default=None, metavar="SECONDS")
    parser.add_argument("--memory", choices=["secret", "plain"], default="secret")
    options = parser.parse_args()
    report = run(Plan(options.minutes * 60, options.clients, options.kill, options.memory))
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 0 if report["good"] else 1


if __name__ == "__main__":
    sys.exit(main())
