"""One graph for several generations of a model: their tokens in, the next tokens out.

A decode reads every weight once, however many sequences it is for, so tokens of several sequences go
through the model in one graph.
"""

from __future__ import annotations

from collections.abc import Sequence

from flexserve.errors import FlexServeError
from flexserve.protocol.failures import foreseen
from flexserve.protocol.trusted_app import Progress
from flexserve.trusted.open_model import OpenModel
from flexserve.trusted.requests.generation import Generation
from flexserve.trusted.store.image import DamagedImageError


def step(entry: OpenModel, generations: Sequence[Generation], limit: int) -> list[Progress]:
    """Compute at most `limit` pending tokens of each generation, and choose the tokens that follow.

    A damaged image is made anew; those that computed go on then, each once in its life. Raises nothing.
    """
    try:
        return _computed(entry, generations, limit)
    except DamagedImageError as damage:
        return _go_on(entry, generations, damage)
    except BaseException as error:
        return _broken_off(generations, error)


def _computed(entry: OpenModel, generations: Sequence[Generation], limit: int) -> list[Progress]:
    # llama.cpp computes neighbouring sequences in one go: in their order.
    generations = sorted(generations, key=lambda generation: generation.sequence)
    if len(generations) > 1:
        for generation in generations:  # so many scores at once there is no room for
            generation.take_guesses([])
    share = _share(entry, generations)
    spans = [generation.span(min(limit, share) if generation.scores else limit) for generation in generations]
    stats = entry.context.decode(spans)
    progress = []
    for number, (generation, span) in enumerate(zip(generations, spans, strict=True)):
        generation.took(span, stats)
        if generation.checks:
            progress.append(_checked(entry, generation, number, len(span.tokens)))
            continue
        if span.scored:
            generation.say_prompt(span, entry.context.scores(number, len(span.tokens)))
        progress.append(generation.progress() if generation.pending else _chosen(entry, generation, number))
    return progress


def _share(entry: OpenModel, generations: Sequence[Generation]) -> int:
    """Return how many tokens each generation may have scored whose prompt's probabilities are wanted."""
    scoring = sum(generation.scores for generation in generations)
    return (entry.context.outputs - len(generations) + scoring) // max(1, scoring)


def _chosen(entry: OpenModel, generation: Generation, number: int) -> Progress:
    try:
        reason = generation.choose(entry.context.logits(number))
    except FlexServeError as error:  # its own, as of a grammar that cannot be met
        return Progress(generation.number, error=error)
    return (
        Progress(generation.number, finished=generation.finished(reason)) if reason else generation.progress()
    )


def _checked(entry: OpenModel, generation: Generation, number: int, count: int) -> Progress:
    try:
        right, reason = generation.check(entry.context.scores(number, count))
    except FlexServeError as error:
        return Progress(generation.number, error=error)
    if reason is not None:
        return Progress(generation.number, right=right, finished=generation.finished(reason))
    return Progress(generation.number, generation.pending, right)


def _go_on(entry: OpenModel, generations: Sequence[Generation], damage: DamagedImageError) -> list[Progress]:
    try:
        entry.mend()
        going_on = [generation for generation in generations if generation.go_on_after_damage()]
    except BaseException as error:
        return _broken_off(generations, error)
    stopped = [generation for generation in generations if generation not in going_on]
    return [*(generation.progress() for generation in going_on), *_broken_off(stopped, damage)]


def _broken_off(generations: Sequence[Generation], error: BaseException) -> list[Progress]:
    for generation in generations:
        generation.broke_off()
    return [Progress(generation.number, error=foreseen(error)) for generation in generations]
