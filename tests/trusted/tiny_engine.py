"""The real engine over the tiny model with a fake NPU, in a process of its own: the hooks are for good."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from real_engine import RealEngine

from flexserve.testing.npu import FakeNpu, Troubled
from flexserve.testing.npu_contract import eventually

MODEL = Path(__file__).parents[2] / "models/tiny/flexserve-tiny.gguf"
CONTEXT = 512


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a prompt led to: the logits after it, and what the NPU did for it."""

    logits: NDArray[np.float32]
    products: int
    jobs: int
    fallbacks: int
    lost: int


@dataclasses.dataclass(frozen=True)
class Trouble:
    """What happens at job number `at`: see _TROUBLES."""

    kind: str
    at: int


def _hang(npu: FakeNpu) -> None:
    npu.stuck = True


_TROUBLES = {
    "lost": FakeNpu.lose,
    "wanted back at once": lambda npu: npu.call_back(0.0),
    "wanted back soon": lambda npu: npu.call_back(0.02),
    "hung": _hang,
}


class TinyEngine:
    """Runs prompts in another process. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_start, initargs=(folder,))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def on_cpu(self, tokens: list[int]) -> Outcome:
        """Compute without an NPU."""
        return self._pool.submit(_on_cpu, tokens).result()

    def on_npu(self, tokens: list[int], trouble: Trouble | None = None, **how: Any) -> Outcome:
        """Compute with a fresh NPU, which is here already. `how`: of FakeNpu."""
        return self._pool.submit(_on_npu, tokens, trouble, how).result()

    def evicting(self, tokens: list[int]) -> Outcome:
        """Compute with an NPU over weights that were all evicted before."""
        return self._pool.submit(_evicting, tokens).result()

    def deviations(self, tokens: list[int]) -> list[float]:
        """Return how far each product of the NPU is from the CPU's, at most, relative to its largest."""
        return self._pool.submit(_deviations, tokens).result()

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text, markers of turns included."""
        return self._pool.submit(_tokens, text).result()

    def surprise(self, tokens: list[int], known: int, *, npu: bool) -> float:
        """Return the mean of -log p of all tokens behind the first `known`, which come as a prompt."""
        return self._pool.submit(_surprise, tokens, known, npu).result()


def _start(folder: Path) -> None:
    global _rig  # noqa: PLW0603  # the process is for this alone
    _rig = _Rig(folder)


class _Rig:
    def __init__(self, folder: Path) -> None:
        real = RealEngine(folder)
        self.flexmem, self.engine, self.residency = real.flexmem, real.engine, real.residency
        self.model, self.context = real.open(MODEL, CONTEXT)

    def logits(self, tokens: list[int], start: int = 0) -> NDArray[np.float32]:
        """Take in tokens from position `start` on; return the logits after them."""
        from flexserve.trusted.engine.context import Span

        self.context.prepare()
        self.context.take(0, keep=start)
        self.context.decode([Span(0, start, tokens)])
        return self.context.logits(0).copy()


_rig: _Rig


def _on_cpu(tokens: list[int]) -> Outcome:
    _rig.engine.use_npu(None)
    return Outcome(_rig.logits(tokens), 0, 0, 0, 0)


def _on_npu(tokens: list[int], trouble: Trouble | None, how: dict[str, Any]) -> Outcome:
    from flexserve.trusted.flexnpu import FlexNpu

    fake = FakeNpu(**how)
    if trouble is not None:
        fake = Troubled(at=trouble.at, trouble=_TROUBLES[trouble.kind], **how)
    patience = 0.3 if trouble is not None and trouble.kind == "hung" else 60
    npu = FlexNpu(fake, patience=patience)
    _rig.engine.use_npu(npu)
    try:
        npu.want()
        if fake.willing:
            assert eventually(npu.ready)
        logits = _rig.logits(tokens)
        _rig.flexmem.check()
    finally:
        _rig.engine.use_npu(None)
        npu.close()
    counters = npu.counters
    return Outcome(logits, counters.products, counters.jobs, counters.fallbacks, counters.lost)


def _evicting(tokens: list[int]) -> Outcome:
    _rig.residency.evict(_rig.model.weights, range(_rig.model.weights.count))
    return _on_npu(tokens, None, {})


def _deviations(tokens: list[int]) -> list[float]:
    from flexserve.trusted.engine import offload

    found: list[float] = []
    together = offload.GraphOffload._together

    def compared(graph: Any, product: Any, todo: Any, compute: Any) -> Any:
        done = together(graph, product, todo, compute)
        place = product.target, product.rows, product.columns
        of_npu = offload._floats(*place).copy()
        compute(graph._graph.pick([product.node]))
        of_cpu = offload._floats(*place)
        found.append(float(np.abs(of_npu - of_cpu).max() / np.abs(of_cpu).max()))
        return done

    offload.GraphOffload._together = compared  # type: ignore[assignment]
    try:
        outcome = _on_npu(tokens, None, {})
    finally:
        offload.GraphOffload._together = together
    assert outcome.products >= len(found)
    return found


def _tokens(text: str) -> list[int]:
    from flexserve.trusted.engine.vocabulary import Vocabulary

    return Vocabulary(_rig.model).encode(text, special=True)


def _surprise(tokens: list[int], known: int, npu: bool) -> float:
    outcome = _on_npu(tokens[:known], None, {}) if npu else _on_cpu(tokens[:known])
    logits, total = outcome.logits.astype(np.float64), 0.0
    for position in range(known, len(tokens)):
        highest = logits.max()
        total += np.log(np.exp(logits - highest).sum()) + highest - logits[tokens[position]]
        logits = _rig.logits([tokens[position]], position).astype(np.float64)
    return total / (len(tokens) - known)
