"""A trusted application whose llama.cpp is a fake: the rest is real, memory simulated, the store on disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import gguf
import msgspec
import numpy as np
from fake_engine import CHUNK, Budget
from fake_llama import CONTEXT, FakeEngine
from templates import renderer

from flexserve.protocol.answers import Delta, Finished
from flexserve.protocol.prompts import ChatPrompt, TextPrompt
from flexserve.protocol.requests import Convert, Embed, Generate, Try, Warm
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.statuses import KvStatus
from flexserve.protocol.trusted_app import IdleKv, Kind, Progress
from flexserve.simulator.secure_memory import SimSecureMemory
from flexserve.trusted.app import LlamaApp
from flexserve.trusted.limits import Limits, ModelLimits
from flexserve.trusted.memory.flexmem import FlexMem
from flexserve.trusted.memory.ownership import PageState
from flexserve.trusted.open_model import Services
from flexserve.trusted.store import DeviceKey, Store
from flexserve.trusted.weights.residency import Residency

MIB = 1 << 20


class World:
    """A LlamaApp over `memory` bytes that the OS grants, with the models "a" and "b". A context manager.

    `sent` is what clients were sent. Requests are driven as the scheduler drives them, one step at a time.
    """

    def __init__(
        self,
        folder: Path,
        memory: int = 1 << 30,
        *,
        sequences: int = 2,
        sealed_kv: int = 8 * MIB,
        shares_heap: bool = False,
    ) -> None:
        self.budget = Budget(memory)
        self.flexmem = FlexMem(SimSecureMemory(64 * MIB, CHUNK), 64 * MIB, self.budget)
        self.residency = Residency(self.flexmem, 1)
        self.engine = FakeEngine(self.flexmem)
        self.store = Store(folder / "store", DeviceKey.load_or_create(folder / "key"))
        self.counters = KvStatus()
        if not self.store.list():
            for name in ("a", "b"):
                self.add(name, folder)
        self.services: Any = Services(
            *(self.engine, self.residency, self.store, renderer()),  # type: ignore[arg-type]
            ModelLimits(Limits(CONTEXT, sequences, sealed_kv)),
            self.counters,
            shares_heap,
        )
        self.sent: list[msgspec.Struct] = []
        self.app = LlamaApp(self.services, self.sent.append)
        self._serial = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.residency.close()
        if error is None:
            self.check()

    def check(self) -> None:
        """Check that both worlds agree on who has which memory."""
        self.flexmem.check()
        held = self.flexmem.bytes_in(PageState.GRANTED) + self.flexmem.bytes_in(PageState.SECURE)
        assert held == self.budget.granted, "the two worlds do not agree on what was granted"

    def add(self, name: str, folder: Path) -> None:
        """Put a model into the store."""
        path = folder / f"{name}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_context_length(CONTEXT)
        writer.add_chat_template("{% for m in messages %}{{ m.role }}: {{ m.content }}>{% endfor %}")
        writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        self.store.add(path, name, lambda _done, _total: None)

    # ---- requests --------------------------------------------------------------------------------

    def generate(self, prompt: str | ChatPrompt = "hello>", model: str = "a", **how: Any) -> int:
        """Have a generation admitted; `how`: fields of Sampling, or of Generate."""
        self._serial += 1
        of_sampling = {key: how.pop(key) for key in list(how) if key in Sampling.__struct_fields__}
        text = TextPrompt(prompt) if isinstance(prompt, str) else prompt
        self.app.admit(Generate(self._serial, model, text, Sampling(**of_sampling), **how))
        return self._serial

    def embed(self, *texts: str, model: str = "a") -> int:
        self._serial += 1
        self.app.admit(Embed(self._serial, model, list(texts)))
        return self._serial

    def warm(self, model: str = "a") -> int:
        self._serial += 1
        self.app.admit(Warm(self._serial, model))
        return self._serial

    def convert(self, source: Any, model: str = "a", **how: Any) -> int:
        self._serial += 1
        self.app.admit(Convert(self._serial, model, source, **how))
        return self._serial

    def try_it(self, model: str = "a") -> int:
        self._serial += 1
        self.app.admit(Try(self._serial, model))
        return self._serial

    def prepare(self, request: int) -> None:
        """Prepare a generation. Raises what kept it from being prepared."""
        ended: list[BaseException | None] = []
        self.app.prepare(request, ended.append)
        eventually(lambda: bool(ended))
        if ended[0] is not None:
            raise ended[0]

    def begin(self, request: int) -> Progress | None:
        """Prepare and begin a generation."""
        self.prepare(request)
        return self.app.begin(request)

    def finish(self, *requests: int, model: str = "a", limit: int = 64) -> dict[int, Progress]:
        """Compute steps until all `requests`, which began, have their ends; return these."""
        ends: dict[int, Progress] = {}
        while going := [request for request in requests if request not in ends]:
            for progress in self.app.step(model, going, limit):
                if progress.finished is not None or progress.error is not None:
                    ends[progress.request] = progress
        return ends

    def say(self, prompt: str | ChatPrompt = "hello>", model: str = "a", **how: Any) -> Finished:
        """Run a generation from its admission to its end. Raises what broke it off."""
        request = self.generate(prompt, model, **how)
        assert self.begin(request) is not None
        end = self.finish(request, model=model)[request]
        self.app.end(request)
        if end.error is not None:
            raise end.error
        assert end.finished is not None
        return end.finished

    def text(self, request: int | None = None) -> str:
        """Return what was said in answer to a request, the last one unless it is given."""
        number = self._serial if request is None else request
        return "".join(it.text for it in self.sent if isinstance(it, Delta) and it.request == number)

    def unsealed(self) -> list[IdleKv]:
        """The idle KV that is worth sealing."""
        return [kv for kv in self.app.idle_kv() if kv.worth_sealing]

    def recall(self, kind: Kind, size: int = 1 << 30, model: str = "a", until: float = 0.0) -> int:
        """Have memory given back to the OS, and the OS hear of it; return the bytes."""
        freed = self.app.evict(model, kind, size, keep=False, until=until)
        self.app.report_returned(freed)
        return freed

    def entry(self, model: str = "a") -> Any:
        """Return an open model: its parts are fakes."""
        return self.app._open[model]


def eventually(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something holds that another thread brings about."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.001)
