"""Whether a draft pays: answers with `flexserve set MODEL draft …` beside answers without, in turns.

    python -m flexserve.bench.drafts DRAFT.gguf (--model MODEL.gguf | --layers N) [--rounds 12] [--tokens 96]

With `--layers` the model is the draft with so many layers, of which those that it has more add nothing: the
best case, for each guess is right. In a round one secure world answers the same question both ways, in turns
of which is first, greedily. Prints medians of tokens a second after the first one, the ratio within a round,
how many guesses were right, and whether the words were the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from flexserve.errors import FlexServeError
from flexserve.harness.deeper import write_deeper
from flexserve.harness.worlds import DrivenWorld
from flexserve.protocol.launch import SecureOptions
from flexserve.protocol.model_options import ModelOptions
from flexserve.trusted.store.keys import DeviceKey
from flexserve.trusted.store.store import Store

_WARM_UP = 2  # rounds that are not counted: the policy learns what the pair costs
_CONTEXT = 1024
_OPENINGS = (
    "The history of the steam engine begins with",
    "To bake bread at home, first",
    "A list of the planets of the solar system, with one fact about each:\n1.",
    "def fibonacci(n):\n",
    "The main difference between a virus and a bacterium is that",
    "Once upon a time, in a village by the sea,",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One answer: its words, tokens a second after the first, and its guesses."""

    text: str
    rate: float
    guessed: int
    right: int


def measure(
    world: DrivenWorld, model: str, draft: str, rounds: int, tokens: int
) -> list[tuple[Sample, Sample]]:
    """Return a pair of samples for each round: without and with the draft."""
    found = []
    for number in range(-_WARM_UP, rounds):
        opening, pair = _OPENINGS[number % len(_OPENINGS)], {}
        for drafted in (False, True) if number % 2 else (True, False):
            pair[drafted] = _answer(world, model, draft if drafted else None, opening, tokens)
        if number >= 0:
            found.append((pair[False], pair[True]))
    return found


def _answer(world: DrivenWorld, model: str, draft: str | None, opening: str, tokens: int) -> Sample:
    world.configure({model: ModelOptions(draft=draft)} if draft else {})
    answer = world.generate(model, opening, tokens)
    timings, count = answer.finished.timings, answer.finished.usage.completion_tokens
    rate = 1000 * (count - 1) / timings.decode if timings.decode else 0.0
    return Sample(answer.text, rate, timings.guessed, timings.guessed_right)


def table(pairs: Sequence[tuple[Sample, Sample]]) -> str:
    """Return a Markdown table of what came of `pairs`."""
    guessed = sum(drafted.guessed for _, drafted in pairs)
    right = sum(drafted.right for _, drafted in pairs)
    ratios = sorted(drafted.rate / plain.rate for plain, drafted in pairs)
    same = sum(drafted.text == plain.text for plain, drafted in pairs)
    rows = [
        ("tokens a second without a draft", f"{statistics.median(plain.rate for plain, _ in pairs):.1f}"),
        ("tokens a second with it", f"{statistics.median(drafted.rate for _, drafted in pairs):.1f}"),
        ("ratio, median", f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"),
        ("guesses that were right", f"{right} of {guessed}"),
        ("answers with the same words", f"{same} of {len(pairs)}"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _measured(folder: Path, draft: Path, model: Path | None, arguments: argparse.Namespace) -> str:
    if model is None:
        model = folder / "deeper.gguf"
        write_deeper(draft, model, arguments.layers)
    key = folder / "device.key"
    store = Store(folder / "store", DeviceKey.load_or_create(key))
    for name, path in (("model", model), ("draft", draft)):
        store.add(path, name, lambda _done, _total: None)
    options = SecureOptions(folder / "store", key, context=_CONTEXT, threads=arguments.threads)
    with DrivenWorld(options) as world:
        for name in ("draft", "model"):
            world.warm(name)
        return table(measure(world, "model", "draft", arguments.rounds, arguments.tokens))


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flexserve.bench.drafts")
    parser.add_argument("draft", type=Path)
    pair = parser.add_mutually_exclusive_group(required=True)
    pair.add_argument("--model", type=Path)
    pair.add_argument("--layers", type=int)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flexserve-drafts-") as folder:
        try:
            text = _measured(Path(folder), arguments.draft, arguments.model, arguments)
        except FlexServeError as error:
            sys.stderr.write(f"{error}\n")
            return 1
    sys.stdout.write(f"{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
