"""What a relay can tell of questions by what passes it: a classifier on sizes and times, sealed and openly.

    python -m flexserve.bench.classifier [MODEL.gguf] [--rounds 20] [--tokens 48]

Ten questions of equal length are asked in a random order, each once in a round. Of each answer the sizes and
the times of all pieces are kept, as they pass the server's port. A random forest (scikit-learn, of the extra
`bench`) learns from four fifths of them which question it was, and is asked about the last fifth; each fifth
is the last once. Who guesses is right in 10 %. Four ways to ask:

- openly: the API without a seal;
- sealed: all answers have as many tokens as are asked for;
- sealed, own lengths: each question has an answer of another length;
- sealed, rounded: the same, with answers computed to a multiple of --tokens (`--round-answers`).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import math
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec

from flexserve.attestation.policy import Policy
from flexserve.attestation.verification import verify
from flexserve.bench.demo import DEFAULT_MODEL
from flexserve.errors import CallerError, FlexServeError, PeerError
from flexserve.harness.served import FLEXSERVE, Served, own_environment
from flexserve.normal.remote_server import Attestation
from flexserve.protocol.prompts import TokenPrompt
from flexserve.protocol.requests import Generate
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.sealed_exchange import Exchange

QUESTIONS = 10
PIECES = 64  # of an answer that the classifier looks at one by one
_PROMPT = 32  # tokens
_TOKENS = range(300, 500)  # that prompts consist of: each has three digits, so all prompts are equally long
_NAME = "model"
_TREES = 300  # of the classifier
_PATIENCE = 300.0  # seconds
_NORMAL = 1.959964  # standard deviations that 95 % of a normal distribution lie within


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """What passed for an answer: bytes of the request; seconds since it left, and bytes, of each piece."""

    request: int
    pieces: list[tuple[float, int]]

    def features(self) -> list[float]:
        """Return it as numbers, as many for each answer: totals, then sizes and gaps of the first pieces."""
        padded = [*self.pieces[:PIECES], *[(0.0, 0)] * (PIECES - len(self.pieces))]
        gaps = [after - before for (before, _), (after, _) in zip([(0.0, 0), *padded], padded, strict=False)]
        total, last = sum(size for _, size in self.pieces), self.pieces[-1][0]
        return [self.request, len(self.pieces), total, last, *(size for _, size in padded), *gaps]


@dataclasses.dataclass(frozen=True, slots=True)
class Accuracy:
    """How many of `tried` answers were told apart rightly."""

    right: int
    tried: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of 95 % confidence."""
        share, spread = self.right / self.tried, _NORMAL**2 / self.tried
        middle = (share + spread / 2) / (1 + spread)
        half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
        return middle - half, middle + half


def told_apart(traces: Sequence[Trace], questions: Sequence[int], trees: int = _TREES) -> Accuracy:
    """Return how well `trees` tell `questions` by their traces. Raises CallerError: no scikit-learn."""
    try:
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.model_selection import StratifiedKFold, cross_val_predict
    except ImportError:
        raise CallerError(
            "The classifier needs scikit-learn, which is not installed here.",
            hint="Install it with `pip install 'flexserve[bench]'`.",
            code="extra_missing",
        ) from None
    forest = RandomForestClassifier(n_estimators=trees, random_state=0)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    guesses = cross_val_predict(forest, [trace.features() for trace in traces], list(questions), cv=folds)
    right = sum(int(guess) == question for guess, question in zip(guesses, questions, strict=True))
    return Accuracy(right, len(questions))


class Asker:
    """Asks a running server over one connection, and sees what a relay sees."""

    def __init__(self, http: httpx.Client, tokens: int) -> None:
        """Verify whom to seal to. Raises PeerError."""
        self._http, self._tokens = http, tokens
        nonce = secrets.token_bytes(32)
        said = http.get(f"/v1/attestation?nonce={nonce.hex()}")
        if said.status_code != 200:
            raise PeerError(f"The server does not attest: {said.text[:500]}", hint="See what it says.")
        evidence = msgspec.json.decode(said.content, type=Attestation)
        verified = verify(evidence.chain, evidence.token, nonce, Policy(emulated="allow"))
        self._public, self._token = verified.sealing.public, hashlib.sha256(evidence.token).digest()

    def openly(self, question: int) -> Trace:
        """Ask without a seal."""
        body = {
            "model": _NAME,
            "prompt": prompt_of(question),
            "max_tokens": self._tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "flexserve": {"reuse": False},
        }
        return self._trace("/v1/completions", msgspec.json.encode(body), lambda _piece: None)

    def sealed(self, question: int) -> Trace:
        """Ask for as many tokens as of every question."""
        return self._sealed(question, self._tokens)

    def own_length(self, question: int) -> Trace:
        """Ask for an answer of a length of its own."""
        return self._sealed(question, self._length(question))

    def rounded(self, question: int) -> Trace:
        """Ask for an answer of a length of its own, rounded."""
        return self._sealed(question, self._length(question), self._tokens)

    def _length(self, question: int) -> int:
        return self._tokens * (question + 1) // QUESTIONS

    def _sealed(self, question: int, tokens: int, rounding: int = 1) -> Trace:
        sampling = Sampling(max_tokens=tokens, temperature=0, ignore_eos=True)
        asked = Generate(0, _NAME, TokenPrompt([*prompt_of(question)]), sampling, rounding, reuse=False)
        now = time.time_ns() // 1_000_000
        exchange = Exchange(asked, bytes(32), self._public, self._token, now)
        trace = self._trace("/v1/sealed", exchange.body, exchange.feed)
        exchange.end()
        return trace

    def _trace(self, path: str, body: bytes, read: Callable[[bytes], Any]) -> Trace:
        pieces: list[tuple[float, int]] = []
        began = time.perf_counter()
        with self._http.stream("POST", path, content=body, headers=_headers(path)) as answer:
            if answer.status_code != 200:
                said = answer.read().decode("utf-8", "replace")
                raise PeerError(f"The server refused: {said[:500]}", hint="See what it says.")
            for piece in answer.iter_raw():
                pieces.append((time.perf_counter() - began, len(piece)))
                read(piece)
        return Trace(len(body), pieces)


def prompt_of(question: int) -> list[int]:
    """Return the tokens of a question."""
    return random.Random(question).choices(_TOKENS, k=_PROMPT)


def measure(asker: Asker, rounds: int, only: Sequence[str] = ()) -> dict[str, Accuracy]:
    """Return how well questions are told apart in each way to ask (`only`: or in some); all take turns."""
    ways = {
        "openly": asker.openly,
        "sealed": asker.sealed,
        "sealed, own lengths": asker.own_length,
        "sealed, rounded": asker.rounded,
    }
    ways = {way: ask for way, ask in ways.items() if way in only or not only}
    kept: dict[str, list[tuple[int, Trace]]] = {way: [] for way in ways}
    order = random.Random(0)
    for number in range(-1, rounds):  # the first round opens the model, and does not count
        asked = [(way, question) for way in ways for question in range(QUESTIONS)]
        order.shuffle(asked)
        for way, question in asked:
            trace = ways[way](question)
            if number >= 0:
                kept[way].append((question, trace))
    return {
        way: told_apart([trace for _, trace in traces], [question for question, _ in traces])
        for way, traces in kept.items()
    }


def table(found: dict[str, Accuracy]) -> str:
    """Return a Markdown table."""
    lines = ["| asked | told apart | 95 % confidence | answers |", "|---|---|---|---|"]
    for way, accuracy in found.items():
        low, high = accuracy.interval
        share = accuracy.right / accuracy.tried
        lines.append(f"| {way} | {share:.1%} | {low:.1%} to {high:.1%} | {accuracy.tried} |")
    return "\n".join(lines)


def _headers(path: str) -> dict[str, str]:
    return {"Content-Type": "application/octet-stream" if path == "/v1/sealed" else "application/json"}


def main() -> int:
    """Measure as told by the command line, and print; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m flexserve.bench.classifier",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, nargs="?", default=DEFAULT_MODEL, metavar="MODEL.gguf")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--only", action="append", default=[], metavar="WAY", help="may be given again")
    options = parser.parse_args()
    try:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flexserve-classifier-")))
            environment = own_environment(folder)
            add = [*FLEXSERVE, "add", str(options.model), "--name", _NAME]
            subprocess.run(add, env=environment, check=True, stdout=subprocess.DEVNULL)
            arguments = ("--log-level", "error")
            server = stack.enter_context(Served(environment, folder / "serve.log", arguments))
            http = stack.enter_context(httpx.Client(base_url=server.url, timeout=_PATIENCE))
            shown = table(measure(Asker(http, options.tokens), options.rounds, options.only))
            server.stop()
    except (FlexServeError, httpx.HTTPError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(shown + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
