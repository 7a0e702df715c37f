"""One graph for several generations of a model: what it lacks comes in first, what it says goes out."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from flexserve.errors import CallerError, FlexServeError, GrantRefusedError, InternalError, StoredDataError
from flexserve.protocol import trusted_app
from flexserve.protocol.failures import foreseen
from flexserve.protocol.statuses import Abilities
from flexserve.tee_client.generation import Generation
from flexserve.tee_client.messages import Ask, Progress, Reply, Status, broken, packed, progress
from flexserve.tee_client.open_model import OpenModel
from flexserve.tee_client.services import Services

_PATIENCE = 1.0  # seconds for which a graph waits for memory that the OS took a moment ago
_PAUSE = 0.05
_TEXT = "A first try."


def step(
    services: Services, entry: OpenModel, generations: Sequence[Generation], limit: int
) -> list[trusted_app.Progress]:
    """Compute at most `limit` pending tokens of each generation, and choose those that follow.

    Raises nothing.
    """
    try:
        reply = _computed(services, entry, [each.slot.number for each in generations], limit)
        found = {each.sequence: each for each in progress(reply)}
        if found.keys() != {each.slot.number for each in generations}:
            raise broken("it computed what was not asked")
    except BaseException as error:
        return [trusted_app.Progress(each.request.request, error=foreseen(error)) for each in generations]
    return [_advanced(each, found[each.slot.number]) for each in generations]


def _advanced(generation: Generation, brought: Progress) -> trusted_app.Progress:
    number = generation.request.request
    try:
        finished = generation.took(brought)
    except FlexServeError as error:
        return trusted_app.Progress(number, error=error)
    return trusted_app.Progress(number, generation.pending, finished=finished)


def _computed(services: Services, entry: OpenModel, sequences: Sequence[int], limit: int) -> Reply:
    """Compute a graph. What a recall takes meanwhile comes in again, as soon as the OS grants it."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            entry.weights.load()
            reply = services.app.ask(Ask.STEP, entry.number, limit, payload=packed(sequences))
            if reply.status is Status.DONE:
                return reply
            error = services.app.error(Ask.STEP, reply)
            if reply.status is Status.MISSING:
                entry.weights.after_miss()
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


def tried(services: Services, entry: OpenModel) -> Abilities:
    """Compute once with a model; return what it can do.

    Raises StoredDataError (code "model_unusable") when it makes no text, GrantRefusedError, and what
    restoring weights raises.
    """
    tokens = entry.vocabulary.encode(_TEXT, special=False)
    with services.app.turn():
        slot = entry.conversations.claim("", tokens, [])
        if slot is None:
            return entry.abilities  # it computes at this moment
        try:
            _compute_once(services, entry, slot.number, tokens)
        finally:
            entry.conversations.release(slot, keep=False)
    return msgspec.structs.replace(entry.abilities, tools=_tools(entry))


def _compute_once(services: Services, entry: OpenModel, sequence: int, tokens: Sequence[int]) -> None:
    services.app.do(Ask.BEGIN, entry.number, sequence, 1, 0, 0, payload=packed(tokens))
    try:
        _computed(services, entry, [sequence], services.app.batch)
    except InternalError as error:
        raise StoredDataError(
            f"llama.cpp makes no text with {entry.name} in the secure world.",
            hint="Use another model, or `--secure-world host`.",
            code="model_unusable",
        ) from error
    finally:
        services.app.do(Ask.END, entry.number, sequence)


def _tools(entry: OpenModel) -> str:
    try:
        return entry.template.tools
    except (CallerError, StoredDataError):  # a template that cannot be rendered
        return "none"
