"""The generations that one model computes together.

A decode reads every weight once, however many sequences it is for, so tokens of several sequences
go through the model in one graph. A prompt is many tokens of one sequence: it has graphs of its
own, in pieces while others wait for their next token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from flexserve.errors import CancelledError, FlexServeError
from flexserve.serving.model_manager import OpenModel
from flexserve.trusted.engine.context import BATCH
from flexserve.trusted.requests.generation import Generation
from flexserve.trusted.store.image import DamagedImageError

_PIECE = 64  # tokens of a prompt between two tokens of the others


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """A generation that is over: why it finished, or what stopped it."""

    generation: Generation
    reason: str = ""
    error: BaseException | None = None


class Batch:
    """The running generations of one open model. Belongs to the engine thread, but for `stop`.

    `mend` makes the model's image anew when it turns out to be damaged; it raises when that fails.
    """

    def __init__(self, entry: OpenModel, mend: Callable[[], None]) -> None:
        self.entry = entry
        self._mend = mend
        self.running: list[Generation] = []
        self._cancelled: set[Generation] = set()
        self._computing: list[Generation] = []
        self._prompts_turn = False

    def stop(self, generation: Generation) -> None:
        """End a generation as soon as that does not hurt others. From any thread."""
        self._cancelled.add(generation)
        if self._computing == [generation]:
            self.entry.context.cancel()

    def step(self) -> list[Ended]:
        """Compute one graph and choose the tokens that it leads to; return what ended with it.

        Raises nothing that is one generation's fault.
        """
        ended = [Ended(g, error=_cancelled()) for g in self.running if g in self._cancelled]
        self._drop(ended)
        self._computing = self._next()
        if not self._computing:
            return ended
        try:
            now = self._compute()
        except DamagedImageError as error:
            now = self._go_on(error)
        except BaseException as error:
            now = self._broken_off(error, self._computing)
        self._computing = []
        self._drop(now)
        return ended + now

    def _go_on(self, damage: DamagedImageError) -> list[Ended]:
        """Mend the image and have those that computed go on, each once in its life; end the others."""
        try:
            self._mend()
            return self._broken_off(damage, [g for g in self._computing if not g.go_on()])
        except BaseException as error:
            return self._broken_off(error, self._computing)

    def _broken_off(self, error: BaseException, generations: list[Generation]) -> list[Ended]:
        for generation in generations:  # what of the graph reached the KV cache is unknown
            assert generation.slot is not None
            generation.slot.tokens = []
        return [Ended(g, error=error) for g in generations]

    def _next(self) -> list[Generation]:
        """Return whose tokens go into the next graph."""
        prompts = [g for g in self.running if g.pending > 1]
        ready = [g for g in self.running if g.pending == 1]
        self._prompts_turn = bool(prompts) and not (ready and self._prompts_turn)
        return prompts[:1] if self._prompts_turn else ready

    def _compute(self) -> list[Ended]:
        context = self.entry.context
        others_wait = any(g.pending == 1 for g in self.running if g not in self._computing)
        limit = _PIECE if others_wait else BATCH
        # llama.cpp computes neighbouring sequences in one go: in their order.
        generations = sorted(self._computing, key=lambda g: g.slot.number if g.slot else 0)
        spans = [g.span(limit) for g in generations]
        stats = context.decode(spans)
        ended: list[Ended] = []
        for row, (generation, span) in enumerate(zip(generations, spans, strict=True)):
            generation.took(span, stats)
            if generation.pending == 0:
                ended += self._choose(generation, row)
        return ended

    def _choose(self, generation: Generation, row: int) -> list[Ended]:
        try:
            reason = generation.choose(self.entry.context, row)
        except FlexServeError as error:  # its own, as of a grammar that cannot be met
            return [Ended(generation, error=error)]
        return [Ended(generation, reason)] if reason else []

    def _drop(self, ended: list[Ended]) -> None:
        over = {e.generation for e in ended}
        self._cancelled -= over
        self.running = [g for g in self.running if g not in over]


def _cancelled() -> CancelledError:
    return CancelledError("The request was cancelled.")
