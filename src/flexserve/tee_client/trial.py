"""A model's first computing: what it can do is found out by doing it once."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

import msgspec

from flexserve.errors import CallerError, InternalError, StoredDataError
from flexserve.protocol.statuses import Abilities
from flexserve.tee_client.messages import Ask, owner_numbers, packed
from flexserve.tee_client.open_model import OpenModel
from flexserve.tee_client.services import Services
from flexserve.tee_client.steps import computed

_TEXT = "A first try."
_TOKENS = 8  # of it


def try_model(services: Services, entry: OpenModel) -> Abilities:
    """Compute text and a vector, or a rank, with `entry`, as far as it may be able to; return what worked.

    Raises StoredDataError (code "model_unusable") when it can do neither, GrantRefusedError, and what
    restoring weights raises.
    """
    possible = entry.abilities
    tokens = entry.vocabulary.encode(_TEXT, special=False)[:_TOKENS] or [0]

    def embed() -> None:
        asked = (entry.number, int(possible.ranks), services.app.batch)
        computed(services, entry, Ask.EMBED, *asked, payload=packed(tokens))

    found = msgspec.structs.replace(
        possible,
        text=possible.text and _works(lambda: _say(services, entry, tokens)),
        vectors=possible.vectors and _works(embed),
        ranks=possible.ranks and _works(embed),
        tools=_tools(entry),
    )
    if not (found.text or found.vectors or found.ranks):
        raise StoredDataError(
            f"llama.cpp makes neither text nor vectors nor ranks with {entry.name} in the secure world.",
            hint="Use another model, or `--secure-world host`.",
            code="model_unusable",
        )
    return found


def _works(compute: Callable[[], None]) -> bool:
    try:
        compute()
    except InternalError:
        return False
    return True


def _say(services: Services, entry: OpenModel, tokens: Sequence[int]) -> None:
    with services.app.turn():
        slot = entry.conversations.claim("", tokens, [])
        if slot is None:
            return  # it computes at this moment
        where, nobody = (entry.number, slot.number), owner_numbers(secrets.token_hex(16))
        try:
            services.app.do(Ask.BEGIN, *where, 1, *nobody, payload=packed(tokens))
            sequences, limit = packed([slot.number]), services.app.batch
            computed(services, entry, Ask.STEP, entry.number, limit, payload=sequences)
        finally:
            services.app.do(Ask.END, *where)
            entry.conversations.release(slot, keep=False)


def _tools(entry: OpenModel) -> str:
    try:
        return entry.template.tools
    except (CallerError, StoredDataError):  # a template that cannot be rendered
        return "none"
