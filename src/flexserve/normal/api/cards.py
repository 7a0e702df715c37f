"""What clients are told of a model: of what kind it is, what it can do, how much it takes in."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec

from flexserve.protocol.statuses import Description, ModelStatus

Json = dict[str, Any]

_UNKNOWN = Description("", 0, 0, "", 0, "", 0, 0, 0)


def description_of(model: ModelStatus) -> Description:
    """Return what is known of a model, zeros where nothing is."""
    return model.description or _UNKNOWN


def capabilities_of(model: ModelStatus) -> list[str]:
    """Return what a model can do, in ollama's words. Empty: nobody tried."""
    able = model.abilities
    if able is None:
        return []
    known = {"completion": able.text, "tools": able.text and able.tools != "none", "embedding": able.vectors}
    known["rerank"] = able.ranks
    return [name for name, has in known.items() if has]


def card(model: ModelStatus) -> Json:
    """Return a model as OpenAI's, Anthropic's and llama-server's clients read it."""
    about = description_of(model)
    return {
        "id": model.name,
        "object": "model",
        "type": "model",
        "display_name": model.name,
        "created": about.created,
        "created_at": moment(about.created),
        "owned_by": "flexserve",
        "parent": about.adapter_of or None,
        "context_length": about.context,
        "capabilities": capabilities_of(model),
        "abilities": None if model.abilities is None else msgspec.to_builtins(model.abilities),
        "meta": {
            "n_ctx_train": about.trained_context,
            "n_params": about.parameters,
            "size": about.size,
            "architecture": about.architecture,
            "quantization": about.quantization,
            "kv_type": about.kv,
            "context_shift": about.shift,
            "draft": about.draft or None,
        },
    }


def card_list(models: list[ModelStatus]) -> Json:
    """Return all models as OpenAI's and Anthropic's clients read them."""
    cards = [card(model) for model in models]
    ends = {"first_id": cards[0]["id"], "last_id": cards[-1]["id"]} if cards else {}
    return {"object": "list", "data": cards, "has_more": False, "first_id": None, "last_id": None, **ends}


def moment(seconds: float) -> str:
    """Return seconds since 1970 as text, in universal time."""
    time = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return time.isoformat(timespec="microseconds" if seconds % 1 else "seconds").replace("+00:00", "Z")
