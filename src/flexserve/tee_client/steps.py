"""One graph for several generations of a model: what it lacks comes in first, what it says goes out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from flexserve.errors import FlexServeError, GrantRefusedError
from flexserve.protocol import trusted_app
from flexserve.protocol.answers import Finished
from flexserve.protocol.failures import foreseen
from flexserve.tee_client.messages import Ask, Progress, Reply, Status, broken, packed, progress
from flexserve.tee_client.open_model import OpenModel
from flexserve.tee_client.services import Services
from flexserve.trusted.kv.slots import Slot

_PATIENCE = 5.0  # seconds for which a graph waits for memory that the OS took a moment ago
_PAUSE = 0.05
_STREAMS = 1  # the last argument of what computes: weights that it misses are being loaded


class Asked(Protocol):
    """A request of a generation."""

    @property
    def request(self) -> int:
        """Its number."""


class Running(Protocol):
    """A generation that has begun (generation.Generation, sealed_generation.SealedGeneration)."""

    entry: OpenModel
    slot: Slot
    pending: int  # tokens to compute before the next one can be chosen

    @property
    def request(self) -> Asked:
        """What it answers."""

    def bound(self) -> None:
        """Tell the application what the next token may be, if that is not any."""

    def took(self, progress: Progress) -> Finished | None:
        """Take in what a step brought; return the end, if that was it. Raises FlexServeError."""


def step(
    services: Services, entry: OpenModel, generations: Sequence[Running], limit: int
) -> list[trusted_app.Progress]:
    """Compute at most `limit` pending tokens of each generation, and choose those that follow.

    Raises nothing.
    """
    try:
        for each in generations:
            each.bound()
        sequences = packed(sorted(each.slot.number for each in generations))  # neighbours in one go
        reply = computed(services, entry, Ask.STEP, entry.number, limit, payload=sequences)
        found = {each.sequence: each for each in progress(reply)}
        if found.keys() != {each.slot.number for each in generations}:
            raise broken("it computed what was not asked")
    except BaseException as error:
        return [trusted_app.Progress(each.request.request, error=foreseen(error)) for each in generations]
    return [_advanced(each, found[each.slot.number]) for each in generations]


def _advanced(generation: Running, brought: Progress) -> trusted_app.Progress:
    number = generation.request.request
    try:
        finished = generation.took(brought)
    except FlexServeError as error:
        return trusted_app.Progress(number, error=error)
    apart = generation.entry.abilities.recurrent
    return trusted_app.Progress(number, generation.pending, finished=finished, apart=apart)


def computed(services: Services, entry: OpenModel, kind: Ask, *arguments: int, payload: bytes) -> Reply:
    """Ask for what computes with a model, while its weights come in.

    Raises GrantRefusedError when the OS does not grant that for a while, StoredDataError, and InternalError.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            if not services.overlaps:
                entry.weights.load()
            with services.streaming.of(entry.weights):
                reply = services.app.ask(kind, *arguments, _STREAMS, payload=payload)
            if reply.status is Status.DONE:
                entry.weights.waited += reply.values[0] / 1e6
                if kind is Ask.STEP:
                    entry.computed()
                return reply
            error = services.app.error(kind, reply)
            if reply.status is Status.MISSING:
                if services.streaming.error is not None:
                    raise services.streaming.error
                entry.weights.look()
            elif isinstance(error, GrantRefusedError):
                _have(services, error)
            else:
                raise error
        except GrantRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE)


def _have(services: Services, refused: GrantRefusedError) -> None:
    """Ask the OS for what was refused. Raises it when nothing more is granted."""
    unused = services.memory.unused()
    if services.memory.grant(unused + refused.missing, unused + refused.missing) <= unused:
        raise refused
