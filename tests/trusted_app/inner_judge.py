"""llama.cpp as its own programs use it: what the trusted application is compared with."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flexserve.emulator.trusted_app import Programs
from flexserve.protocol.model_options import KvType
from flexserve.tee_client.messages import KV_TYPES


class Judge:
    """trusted-app/tests/plain.cpp: the same llama.cpp, computed by one thread."""

    def __init__(self, emulator: str, programs: Programs) -> None:
        self._command = [emulator, "-cpu", "cortex-a76", str(programs.plain)]

    def logits(
        self, model: Path, prompt: Sequence[int], answer: Sequence[int], *, kv: KvType = "f16"
    ) -> NDArray[np.float32]:
        """Return those behind the prompt, and behind each token of the answer; `kv`: as what KV is kept."""
        floats = self._run(model, "score", len(prompt), [*prompt, *answer], kv=kv)
        return floats.reshape(len(answer) + 1, -1)

    def each(self, model: Path, text: Sequence[int], at_once: int) -> NDArray[np.float32]:
        """Return the logits behind each token of a text, of which `at_once` go into a graph."""
        return self._run(model, "each", at_once, text).reshape(len(text), -1)

    def vector(self, model: Path, text: Sequence[int], pooling: int) -> NDArray[np.float32]:
        """Return what llama.cpp pools of a text in one graph."""
        return self._run(model, "embed", pooling, text)

    def _run(
        self, model: Path, what: str, number: int, tokens: Sequence[int], kv: KvType = "f16"
    ) -> NDArray[np.float32]:
        words = [*self._command, str(model), "1", what, str(number), *map(str, tokens)]
        environment = {**os.environ, "KV_TYPE": str(KV_TYPES[kv])}
        done = subprocess.run(words, capture_output=True, check=True, env=environment)
        return np.frombuffer(done.stdout, np.float32)
