"""llama.cpp as its own programs use it: what the trusted application is compared with."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flexserve.emulator.trusted_app import Programs


class Judge:
    """trusted-app/tests/plain.cpp: the same llama.cpp, computed by one thread."""

    def __init__(self, emulator: str, programs: Programs) -> None:
        self._command = [emulator, "-cpu", "cortex-a76", str(programs.plain)]

    def logits(self, model: Path, prompt: Sequence[int], answer: Sequence[int]) -> NDArray[np.float32]:
        """Return those behind the prompt, and behind each token of the answer."""
        floats = self._run(model, "score", len(prompt), [*prompt, *answer])
        return floats.reshape(len(answer) + 1, -1)

    def vector(self, model: Path, text: Sequence[int], pooling: int) -> NDArray[np.float32]:
        """Return what llama.cpp pools of a text in one graph."""
        return self._run(model, "embed", pooling, text)

    def _run(self, model: Path, what: str, number: int, tokens: Sequence[int]) -> NDArray[np.float32]:
        words = [*self._command, str(model), "1", what, str(number), *map(str, tokens)]
        return np.frombuffer(subprocess.run(words, capture_output=True, check=True).stdout, np.float32)
