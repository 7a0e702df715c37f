"""What `flexserve bench paper` measures: models, prompts, pressure, workflows; in full, or quickly."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence

from flexserve.protocol.launch import SECURE_WORLD, Memory
from flexserve.units import MIB

_KV_DISK = 64 * MIB  # sealed KV of a model: all that a round leaves, without filling the cache folder


class System(enum.Enum):
    """A measured_system. Values are the names in the report."""

    FLEXSERVE = "flexserve"
    STRAWMAN = "strawman"
    STRAWMAN_OPT = "strawman_opt"
    NW_BASE = "nw_base"

    @property
    def keeps(self) -> bool:
        """Whether it keeps anything between requests."""
        return self in (System.FLEXSERVE, System.NW_BASE)

    @property
    def kv_disk(self) -> int:
        """Bytes of sealed KV that it keeps on disk for a model."""
        return _KV_DISK if self is System.FLEXSERVE else 0

    @property
    def program(self) -> tuple[str, ...]:
        """The program that it is."""
        if self is System.FLEXSERVE:
            return (SECURE_WORLD,)
        return ("flexserve.bench.secure_world", self.value.replace("_", "-"))


@dataclasses.dataclass(frozen=True, slots=True)
class Workflow:
    """Calls of models (by their place in the plan's shapes), one after the other."""

    name: str
    calls: tuple[int, ...]
    kept: float | None = None  # what may stay between calls, of the models' summed weights; None: all
    hints: bool = False  # each call names the next one's model
    # What may be granted at any time, of the models' summed weights; None: no cap. It is at least what the
    # largest model needs at once, as a strawman could not answer otherwise.
    cap: float | None = None
    pressed: float = (
        0.0  # the part of the cap that another program takes after each call, and soon gives back
    )
    prompt: int | None = None  # tokens of each call; None: the plan's …
    tokens: int | None = None  # … and of its answer


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """All that is measured in each of `rounds`, and how a world is started for it."""

    shapes: tuple[str, ...]
    prompts: tuple[int, ...]  # tokens
    kept: tuple[float, ...]  # background pressure: the fraction of the weights that it leaves in memory
    workflows: tuple[Workflow, ...]
    rounds: int
    threads: int
    memory: Memory  # "secret" or "plain", of all but the unprotected baseline
    quant: str = "q4_0"
    call_prompt: int = 64  # tokens of a call of a workflow …
    call_tokens: int = 16  # … and of its answer
    decode_prompt: int = 128  # decode speed: tokens in …
    decode_tokens: int = 32  # … and out
    pipeline_shape: int = 0  # whose pipeline is held against its lower bound
    pipeline_prompts: tuple[int, ...] = (32, 128)
    pipeline_times: int = 1  # in each round: single restores differ by a tenth and more
    recalled: tuple[int, ...] = (25, 50, 75, 100)  # percent
    context: int = 2048
    beside: int = 128 * MIB  # bytes of KV and scratch that a model needs beside its weights, at most
    chunk: int = 0  # bytes; 0: as FlexServe has it

    @property
    def lengths(self) -> Sequence[int]:
        """Every length of prompt that is used, in tokens."""
        own = {workflow.prompt for workflow in self.workflows if workflow.prompt is not None}
        return sorted({*self.prompts, *self.pipeline_prompts, self.call_prompt, self.decode_prompt, *own})


_CAP = 0.77  # of two models' weights: one fits, and half of the other
# Random in that nobody can guess them, and the same in every run: three models, each three times.
_RANDOM_CALLS = (1, 0, 2, 1, 1, 0, 2, 0, 2)


def full(threads: int, memory: Memory) -> Plan:
    """Return the plan of the published measurements, as far as one machine can: 30 to 40 minutes."""
    return Plan(
        shapes=("qwen2.5-0.5b", "tinyllama-1.1b", "llama-3.2-3b"),
        prompts=(32, 128, 512),
        kept=(1.0, 0.5, 0.0),
        workflows=(
            Workflow("two-model loop", (0, 1) * 3, hints=True),
            Workflow("three-model loop", (0, 1, 2) * 2, hints=True),
            Workflow("three-model loop, 40 % kept", (0, 1, 2) * 2, kept=0.4, hints=True),
            Workflow("random calls, 40 % kept", _RANDOM_CALLS, kept=0.4),
            Workflow("two-model loop, capped", (0, 1) * 3, hints=True, cap=_CAP),
            Workflow("two-model loop, capped, pressed", (0, 1) * 3, hints=True, cap=_CAP, pressed=0.25),
            Workflow("two-model loop, capped, short", (0, 1) * 6, hints=True, cap=_CAP, prompt=32, tokens=1),
        ),
        rounds=3,
        threads=threads,
        memory=memory,
        pipeline_shape=1,
        pipeline_times=3,
    )


def quick(threads: int, memory: Memory) -> Plan:
    """Return a plan of some minutes that touches everything once."""
    return Plan(
        shapes=("qwen2.5-0.5b", "tinyllama-1.1b"),
        prompts=(32, 128),
        kept=(1.0, 0.5, 0.0),
        workflows=(
            Workflow("two-model loop", (0, 1) * 2, hints=True),
            Workflow("random calls, 40 % kept", (1, 0, 0, 1), kept=0.4),
            Workflow("two-model loop, capped", (0, 1) * 2, hints=True, cap=_CAP),
            Workflow("two-model loop, capped, pressed", (0, 1) * 2, hints=True, cap=_CAP, pressed=0.25),
        ),
        rounds=1,
        threads=threads,
        memory=memory,
        call_prompt=32,
        call_tokens=8,
        decode_tokens=16,
        pipeline_shape=0,
    )
