"""What is measured where the secure world is inside of the machine; in full, or quickly."""

from __future__ import annotations

import dataclasses

from flexserve.bench.paper import plan as paper
from flexserve.bench.paper.plan import Workflow
from flexserve.bench.trustzone.plan import NO_CLEARING
from flexserve.units import GIB, MIB

# One CPU computes, and the other is the guest's: threads of the application wait for each other by spinning.
_THREADS = 1


@dataclasses.dataclass(frozen=True, slots=True)
class InsidePlan:
    """Requests to each of the four systems, on a machine of its own."""

    requests: paper.Plan
    ram_bytes: int = GIB
    cpus: int = 2
    background: int = 40  # percent of RAM in anonymous memory beside each request
    bootargs: str = NO_CLEARING
    seconds: float = 900.0  # after which no round begins that would probably end later

    @property
    def area(self) -> int:
        """Bytes of the CMA area: half of RAM, so that half of what the background takes lies in it."""
        return self.ram_bytes // 2 & -(4 * MIB)


def full() -> InsidePlan:
    """Return the plan whose figures are worth quoting: as many rounds, up to three, as the time allows."""
    return _plan(
        shapes=("medium-qwen2", "medium-llama"),
        prompts=(8, 32),
        workflows=(
            Workflow("two-model loop", (0, 1) * 2, hints=True),
            Workflow("two-model loop, short", (0, 1) * 2, hints=True, tokens=1),
        ),
        rounds=3,
    )


def quick() -> InsidePlan:
    """Return a plan of some three minutes that touches everything once."""
    return _plan(
        shapes=("small-qwen2", "medium-qwen2"),
        prompts=(8,),
        workflows=(Workflow("two-model loop, short", (0, 1) * 2, hints=True, tokens=1),),
        rounds=1,
    )


def _plan(
    *, shapes: tuple[str, ...], prompts: tuple[int, ...], workflows: tuple[Workflow, ...], rounds: int
) -> InsidePlan:
    return InsidePlan(
        paper.Plan(
            shapes=shapes,
            prompts=prompts,
            kept=(1.0, 0.0),
            workflows=workflows,
            rounds=rounds,
            threads=_THREADS,
            memory="trustzone",
            call_prompt=8,
            call_tokens=4,
            decode_prompt=8,
            decode_tokens=16,
            pipeline_prompts=(),
            context=512,
        )
    )
