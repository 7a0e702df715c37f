"""What becomes of a model of each architecture in a real secure world: the table docs/architectures.md.

    python -m flexserve.testing.architecture_table docs/architectures.md

A tiny model of random weights of each is made, added and tried; what it makes is compared with what plain
llama.cpp makes: log-probabilities of an answer's tokens, vectors by their cosine.
"""

from __future__ import annotations

import contextlib
import math
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from flexserve.errors import FlexServeError, PeerError
from flexserve.harness.plain import PlainProcess
from flexserve.harness.worlds import DrivenWorld
from flexserve.protocol.launch import SecureOptions
from flexserve.protocol.prompts import TextPrompt
from flexserve.testing.architectures import ARCHITECTURES, UNMADE, make_models
from flexserve.trusted.store import DeviceKey, Store

PROMPT = "Once there was a house."
TOKENS = 8
_CONTEXT = 256
_APART = 0.01  # natural logarithms of probabilities
_ALIKE = 0.9999  # cosine of vectors
_HEAD = """# Architectures

What becomes of a tiny model of random weights of each architecture that the pinned llama.cpp knows, in a
real secure world: tried as `flexserve add` tries it, and compared with plain llama.cpp. *Right text*: the
log-probability of each of 8 tokens differs by 0.01 at most; *right vectors*: their cosine is at least 0.9999.
Written by `python -m flexserve.testing.architecture_table docs/architectures.md`; tests compare a sample of
the rows with what becomes of the models, and all of them with `FAMILIES=all`.

*Refused*: this tiny model is not added. Where llama.cpp aborts, it ends the process that tries the model,
and no server. The model is made of what llama.cpp's loader asks for; where its graph wants more than that,
a published model may run.

| Architecture | In a secure world |
|---|---|
"""


def table(architectures: Sequence[str]) -> str:
    """Return the document for `architectures`."""
    return _HEAD + "".join(f"| {name} | {outcome} |\n" for name, outcome in outcomes(architectures))


def outcomes(architectures: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each architecture with what became of its model."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        root = Path(folder)
        unmade = make_models([name for name in architectures if name not in UNMADE], root / "gguf")
        bench = _Bench(root, stack)
        for name in architectures:
            if why := UNMADE.get(name) or unmade.get(name):
                yield name, f"refused: no model can be made ({_one_line(why)})"
            else:
                yield name, bench.outcome(root / "gguf" / f"{name}.gguf")


class _Bench:
    """A store, and a secure world over it, which is another one after each model that it dies of."""

    def __init__(self, root: Path, stack: contextlib.ExitStack) -> None:
        self._root, self._stack = root, stack
        self._store = Store(root / "store", DeviceKey.load_or_create(root / "device.key"))
        self._world = self._start()

    def _start(self) -> DrivenWorld:
        store, key = self._root / "store", self._root / "device.key"
        world = DrivenWorld(SecureOptions(store, key, "plain", threads=1, context=_CONTEXT, chunk=65536))
        return self._stack.enter_context(world)

    def outcome(self, source: Path) -> str:
        """Return what becomes of the model at `source`."""
        name = source.stem.lower()
        try:
            manifest = self._store.add(source, name, lambda _done, _total: None)
        except FlexServeError as error:
            return f"refused by the reader: {_one_line(error.message)}"
        end = self._tried(name)
        record = self._store.derived.record(manifest)
        if record is None or not (record.abilities.text or record.abilities.vectors):
            return f"refused: {_one_line(end)}"
        with PlainProcess(source, 1, _CONTEXT) as plain:
            texts = [self._text(name, plain)] if record.abilities.text else []
            return ", ".join(texts + ([self._vectors(name, plain)] if record.abilities.vectors else []))

    def _tried(self, name: str) -> str:
        try:
            self._world.try_model(name)
        except FlexServeError as error:
            if isinstance(error, PeerError):
                self._world.close()
                self._world = self._start()
            return error.message
        return ""

    def _text(self, name: str, plain: PlainProcess) -> str:
        number = self._world.submit(name, TextPrompt(PROMPT), TOKENS, logprobs=0)
        ours = [choice.token.logprob or 0.0 for choice in self._world.result(number).choices]
        theirs = plain.scores(PROMPT, TOKENS)[: len(ours)]
        apart = max((abs(one - other) for one, other in zip(ours, theirs, strict=True)), default=math.inf)
        return "right text" if apart <= _APART else f"text whose log-probabilities differ by {apart:.2g}"

    def _vectors(self, name: str, plain: PlainProcess) -> str:
        [data] = self._world.vectors(self._world.start_embedding(name, [PROMPT]))
        theirs = np.array(plain.vector(PROMPT))
        cosine = float(np.frombuffer(data, "<f4") @ theirs / np.linalg.norm(theirs))
        return "right vectors" if cosine >= _ALIKE else f"vectors of cosine {cosine:.4f}"


def _one_line(text: str) -> str:
    shown = text.rpartition("/llama.cpp/")[2] if "/llama.cpp/" in text else text
    return " ".join(shown.replace("|", "/").split())[:160]


def main(arguments: Iterable[str]) -> None:
    """Write the document to the file that is named."""
    [path] = arguments
    Path(path).write_text(table(ARCHITECTURES))


if __name__ == "__main__":
    main(sys.argv[1:])
