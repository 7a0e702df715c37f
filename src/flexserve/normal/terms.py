"""On what terms a request is made, whatever it asks for."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Terms:
    """Whose request it is, how urgent, and what comes after it.

    KV is reused between requests of one `owner` only. `next_model` is the model that the caller
    expects to ask next. `keep_alive` is how long the model keeps its memory (seconds; -1: for ever;
    None: as the server is configured). Without `reuse` the whole prompt is computed anew.
    """

    owner: str = ""
    priority: int = 0
    next_model: str | None = None
    keep_alive: float | None = None
    reuse: bool = True
