"""The models of a measurement: synthetic ones, sealed in a store that is kept from run to run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from flexserve.bench.measure import prompt_of
from flexserve.harness.plain import PlainProcess
from flexserve.harness.shapes import SHAPES
from flexserve.harness.synth import write_synthetic
from flexserve.trusted.store.keys import DeviceKey
from flexserve.trusted.store.store import Store

Say = Callable[[str], None]


class Models:
    """Sealed synthetic models in `folder`, made when they are first asked for.

    The GGUF files are removed once they are sealed; a model takes twice its size on the disk.
    """

    def __init__(self, folder: Path, say: Say) -> None:
        self.root = folder / "store"
        self.key = folder / "device.key"
        self._folder, self._say = folder, say
        self._store = Store(self.root, DeviceKey.load_or_create(self.key))

    def make(
        self, shape: str, quant: str, lengths: Sequence[int], threads: int
    ) -> tuple[str, dict[int, str]]:
        """Return the name of a model, and for each of `lengths` a prompt of so many tokens."""
        name = f"{shape}-{quant}"
        noted = self._folder / f"{name}.prompts.json"
        prompts = msgspec.json.decode(noted.read_bytes(), type=dict[int, str]) if noted.exists() else {}
        sealed = any(manifest.name == name for manifest in self._store.list())
        if not sealed or not set(lengths) <= set(prompts):
            gguf = self._folder / f"{name}.gguf"
            self._say(f"making {name}")
            write_synthetic(gguf, SHAPES[shape], quant)
            if not sealed:
                self._store.add(gguf, name, lambda _done, _total: None)
            with PlainProcess(gguf, threads, max(lengths) + 1) as plain:
                prompts |= {length: prompt_of(plain, length) for length in lengths}
            noted.write_bytes(msgspec.json.encode(prompts))
            gguf.unlink()
        return name, prompts
