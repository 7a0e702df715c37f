"""What end-to-end tests share: models in a store, secure worlds over it, plain llama.cpp as oracle."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flexserve.errors import NormalWorldError
from flexserve.harness.plain import PlainProcess
from flexserve.harness.shapes import SHAPES, Shape
from flexserve.harness.synth import write_synthetic
from flexserve.harness.worlds import DrivenWorld
from flexserve.platforms.linux.secure_memory import probe_secret_memory
from flexserve.protocol.launch import SECURE_WORLD, SecureOptions
from flexserve.trusted.store.keys import DeviceKey
from flexserve.trusted.store.store import Store
from flexserve.units import MIB

PROMPTS = ("Kato bime wurafo. " * 8, "Once.", "Zi lo mera? Tuvo, kane pi sura; dolo.")
THREADS = 1  # ggml's threads spin for each other: two of them on a busy machine of two cores crawl
CONTEXT = 512  # tokens
TOKENS_OF_TURN = 48  # an answer of the tiny model is at most so long
CHUNK = 65536  # bytes: small, so that small models have many
# For requests that must still run when something happens to them.
SLOW = dataclasses.replace(SHAPES["small-llama"], name="slow-llama", layers=24)


class Library:
    """A store in `folder` with GGUF files beside it, and the answers that plain llama.cpp gives to them."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "store"
        self.key = folder / "keys" / "device.key"
        self.store = Store(self.root, DeviceKey.load_or_create(self.key))
        self._files = folder / "gguf"
        self._files.mkdir()
        self._answers: dict[tuple[Path, str, int], str] = {}

    def file(self, shape: str | Shape, quant: str, seed: int = 0) -> Path:
        """Return the GGUF of a shape, writing it when it is not there yet."""
        shape = SHAPES[shape] if isinstance(shape, str) else shape
        path = self._files / f"{shape.name}-{quant}-{seed}.gguf"
        if not path.exists():
            write_synthetic(path, shape, quant, seed=seed)
        return path

    def add(self, source: Path, name: str) -> str:
        """Seal a GGUF as `name`."""
        self.store.add(source, name, lambda _done, _total: None)
        return name

    def answer(self, source: Path, prompt: str, tokens: int) -> str:
        """Return what plain llama.cpp continues `prompt` with."""
        key = (source, prompt, tokens)
        if key not in self._answers:
            with PlainProcess(source, THREADS, CONTEXT) as plain:
                self._answers[key] = plain.generate(prompt, tokens)["text"]
        return self._answers[key]

    def options(self, **more: Any) -> SecureOptions:
        """Return the options of a secure world for small models, in the best memory of this machine."""
        memory = "secret" if has_secret_memory() else "plain"
        usual: dict[str, Any] = {"memory": memory, "threads": THREADS, "context": CONTEXT, "chunk": CHUNK}
        return SecureOptions(self.root, self.key, **usual | more)

    def open(
        self, *, budget: int | None = None, program: Sequence[str] = (SECURE_WORLD,), **more: Any
    ) -> DrivenWorld:
        """Start a secure world over the store; `more` are its options."""
        return DrivenWorld(self.options(**more), budget=budget, program=program)

    def images(self) -> list[Path]:
        """Return all files in the store's folder of images, finished or not."""
        return sorted((self.root / "images").iterdir())


def has_secret_memory() -> bool:
    """Return whether this machine gives a process secret memory."""
    try:
        probe_secret_memory(256 * MIB)
    except NormalWorldError:
        return False
    return True
