"""What models can be asked for: what policy learns, what a request needs, what architectures are."""

from __future__ import annotations

from flexserve.errors import CallerError
from flexserve.protocol.requests import Convert, Embed, Generate, Try, Warm
from flexserve.protocol.statuses import Abilities
from flexserve.protocol.trusted_app import Ticket, Work

Message = Generate | Embed | Convert | Warm | Try
_WORK = {
    Generate: Work.GENERATE,
    Embed: Work.EMBED,
    Convert: Work.CONVERT,
    Warm: Work.WARM,
    Try: Work.TRY,
}

# Architectures whose graphs end in states and not in scores of tokens (llama.cpp's src/models), whether
# or not their header says that attention is not causal.
ENCODERS = frozenset(
    {"bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3",
     "eurobert", "gemma-embedding", "llama-embed", "t5encoder"}
)  # fmt: skip
# Those whose vectors llama.cpp takes to be longer than they are: reading one would end the process.
NO_VECTORS = frozenset({"deepseek4", "qwen4exp"})
# Those that take in or give out something other than text, or are a part of another model.
NO_TEXTS = frozenset({"wavtokenizer-dec", "pockettts", "eagle3", "dflash", "gemma4-assistant", "clip"})


def ticket_of(message: Message, received: float) -> Ticket:
    """Return what policy learns of a request that came in at `received` (monotonic seconds)."""
    return Ticket(
        message.request,
        message.model,
        _WORK[type(message)],
        received,
        priority=message.priority if isinstance(message, Generate) else 0,
        next_model=message.next_model if isinstance(message, Generate | Embed) else None,
        keep_alive=None if isinstance(message, Try) else message.keep_alive,
    )


def require_text(abilities: Abilities) -> None:
    """Raise CallerError when a model cannot generate text."""
    if not abilities.text:
        raise CallerError(
            "This model cannot generate text.",
            hint="Ask /v1/embeddings for vectors, or name a model that generates."
            if abilities.vectors
            else "Name a model that generates.",
            code="generation_unsupported",
        )


def require(abilities: Abilities, request: Generate | Embed | Warm) -> None:
    """Raise CallerError when a request asks for what the model cannot do."""
    if isinstance(request, Generate):
        require_text(abilities)
    if isinstance(request, Embed) and request.query is not None:
        if not abilities.ranks:
            raise CallerError(
                "This model does not rank texts.",
                hint="Use a reranker; or ask POST /v1/embeddings for vectors, and compare them.",
                code="rerank_unsupported",
            )
    elif isinstance(request, Embed) and not abilities.vectors:
        raise CallerError(
            "This model makes no vectors of texts.",
            hint="Ask POST /v1/rerank: it ranks texts." if abilities.ranks else "Use an embedding model.",
            code="embeddings_unsupported",
        )
