"""The real engine with all that it stands on, for a process of its own: its hooks are for good."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flexserve.platforms.ports import SecureMemory
    from flexserve.protocol.model_options import KvType
    from flexserve.trusted.engine.context import Context
    from flexserve.trusted.engine.model import Model
    from flexserve.trusted.heartbeat import Heartbeat
    from flexserve.trusted.memory.flexmem import Granter

CHUNK = 64 << 10  # bytes


class RealEngine:
    """A store in `folder`, and an engine with one loader over ordinary memory (unless `memory` is given)."""

    def __init__(
        self,
        folder: Path,
        *,
        threads: int = 1,
        adapt: bool = False,
        memory: SecureMemory | None = None,
        granter: Granter | None = None,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        from flexserve.platforms.linux.secure_memory import PlainMemory
        from flexserve.trusted.engine.runtime import Engine
        from flexserve.trusted.memory.flexmem import FlexMem, OpenHanded
        from flexserve.trusted.store.keys import DeviceKey
        from flexserve.trusted.store.store import Store
        from flexserve.trusted.weights.residency import Residency
        from flexserve.units import GIB

        self.store = Store(folder / "store", DeviceKey.load_or_create(folder / "key"))
        self.flexmem = FlexMem(memory or PlainMemory(CHUNK), 2 * GIB, granter or OpenHanded(), heartbeat)
        self.engine = Engine(self.flexmem, threads, heartbeat, adapt=adapt)
        self.residency = Residency(self.flexmem, 1)

    def open(
        self, path: Path, context: int, sequences: int = 1, *, kv_type: KvType = "f16"
    ) -> tuple[Model, Context]:
        """Add the model at `path`, unless it is there, and open it."""
        from flexserve.trusted.engine.context import Context
        from flexserve.trusted.engine.model import Model

        name = path.stem
        if name not in {manifest.name for manifest in self.store.list()}:
            self.store.add(path, name, lambda _done, _total: None)
        model = Model(self.engine, self.store, name)
        return model, Context(model, self.residency, context, sequences, kv_type=kv_type)
