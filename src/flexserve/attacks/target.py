"""What is attacked: a secure world whose model's weights contain a canary."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from gguf import GGUFReader

from flexserve.emulator.machine import Machine
from flexserve.harness.shapes import SHAPES
from flexserve.harness.synth import write_synthetic
from flexserve.harness.worlds import DrivenWorld
from flexserve.protocol.launch import Memory, SecureOptions
from flexserve.trusted.store.keys import DeviceKey, derived_keys
from flexserve.trusted.store.store import Store

MODEL, SHAPE = "canary", "small-llama"
_FINE = 65536  # bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """A store with one model, MODEL, whose weights contain `canary` and keep it when they are repacked."""

    root: Path
    key: Path
    canary: bytes

    @classmethod
    def make(cls, folder: Path) -> Target:
        """Write the model and seal it into a store in `folder`; nothing is left in clear."""
        source = folder / "source.gguf"
        write_synthetic(source, SHAPES[SHAPE], "f16")
        # Norms are kept as they are. Eight numbers near one, that no other tensor has, change no sense.
        numbers = (1 + np.random.default_rng().random(8) / 16).astype(np.float32)
        norm = next(t for t in GGUFReader(source, "r+").tensors if t.name == "blk.1.attn_norm.weight")
        norm.data[:8] = numbers
        norm.data.base.flush()
        root, key = folder / "store", folder / "device.key"
        Store(root, DeviceKey.load_or_create(key)).add(source, MODEL, lambda _done, _total: None)
        source.unlink()
        return cls(root, key, numbers.tobytes())

    def secrets(self) -> list[bytes]:
        """Return the device's key and what is derived from it."""
        root = self.key.read_bytes()
        return [root, *derived_keys(root)]

    def open(self, memory: Memory, *, guarded: bool = True) -> DrivenWorld:
        """Start a secure world with all of the model in memory, and nobody at its side unless `guarded`."""
        world = DrivenWorld(self._options(memory=memory, chunk=_FINE), guarded=guarded)
        world.generate(MODEL, "Kato bime.", 4)
        world.warm(MODEL)
        return world

    def on(self, machine: Machine) -> DrivenWorld:
        """Start a secure world on a machine."""
        return DrivenWorld(machine.secure_options(self._options()))

    def _options(self, *, memory: Memory = "secret", chunk: int = 0) -> SecureOptions:
        return SecureOptions(self.root, self.key, memory, threads=1, context=256, chunk=chunk)
