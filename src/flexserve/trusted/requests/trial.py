"""A model's first computing: what it can do is found out by doing it once, and written down.

Made in a secure world that serves nobody, when a model is added or verified. A model that dies of
its text leaves no record; one that dies of its vectors leaves one that says that it makes none.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from flexserve.errors import CallerError, InternalError, StoredDataError
from flexserve.protocol.statuses import Abilities
from flexserve.trusted.engine.context import Span
from flexserve.trusted.engine.embedder import Embedder
from flexserve.trusted.open_model import OpenModel

_TEXT = "A first try."
_TOKENS = 8  # of it


def try_model(entry: OpenModel, record: Callable[[Abilities], None]) -> None:
    """Compute text and vectors, or ranks, with `entry`, as far as it may be able to; record what worked.

    Raises StoredDataError (code "model_unusable") when it can do neither, GrantRefusedError, and what
    restoring weights raises.
    """
    possible = entry.possible
    tokens = entry.vocabulary.encode(_TEXT, special=False)[:_TOKENS] or [0]
    makes_text = possible.text and _makes_text(entry, tokens)
    found = msgspec.structs.replace(
        possible, text=makes_text, vectors=False, ranks=False, tools=_tools(entry)
    )
    record(found)
    if (possible.vectors or possible.ranks) and _makes_vectors(entry, tokens, ranks=possible.ranks):
        found = msgspec.structs.replace(found, vectors=possible.vectors, ranks=possible.ranks)
        record(found)
    if not (found.text or found.vectors or found.ranks):
        raise StoredDataError(
            f"llama.cpp makes neither text nor vectors nor ranks with {entry.name}.",
            hint="It may be a part of another model, turn texts into texts (T5), or be made for sound.",
            code="model_unusable",
        )


def _tools(entry: OpenModel) -> str:
    try:
        return entry.template.tools
    except (CallerError, StoredDataError):  # a template that cannot be rendered
        return "none"


def _makes_text(entry: OpenModel, tokens: list[int]) -> bool:
    context = entry.context
    with entry.using():
        try:
            context.take(0, keep=0)
            context.decode([Span(0, 0, tokens)])
            return bool(context.logits(0).shape[0])
        except (InternalError, ValueError):  # ValueError: there are no scores of tokens to look at
            return False
        finally:
            context.release([0], keep_grants=True)


def _makes_vectors(entry: OpenModel, tokens: list[int], *, ranks: bool) -> bool:
    with entry.using():
        try:
            embedder = Embedder(entry.context, ranks=ranks)
        except (CallerError, InternalError):
            return False
        try:
            return bool(embedder.embed(tokens).shape[0])
        except (CallerError, InternalError, ValueError):
            return False
        finally:
            embedder.close()
