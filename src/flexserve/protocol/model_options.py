"""How one model is to be served, where that differs from the server's own settings."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from flexserve.protocol.bounds import Name, Struct

MAX_CONTEXT = 1 << 20  # tokens

KvType = Literal["f16", "q8_0", "q4_0"]  # ggml's names of the types that the KV cache may have


class ModelOptions(Struct, frozen=True):
    """None: as the server's settings have it. `context` and `kv` hold from when the model is opened next.

    `context`: tokens of a request and its answer; "model": as many as it was trained for. `shift`: whether an
    answer goes on when they are full, without the older ones. `draft`: a smaller model that guesses its
    next tokens.
    """

    context: Annotated[int, Meta(ge=1, le=MAX_CONTEXT)] | Literal["model"] | None = None
    kv: KvType | None = None
    shift: bool | None = None
    draft: Name | None = None
