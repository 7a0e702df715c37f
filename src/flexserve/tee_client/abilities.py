"""What of a request the trusted application can do; all else is refused by name, and done by the host."""

from __future__ import annotations

from flexserve.errors import CallerError
from flexserve.protocol.prompts import InfillPrompt
from flexserve.protocol.requests import Embed, Generate
from flexserve.trusted.limits import Limits
from flexserve.trusted.store.manifest import Manifest

_MOST_SEQUENCES = 16  # as trusted-app/service.cpp has it


def require_open(manifest: Manifest, limits: Limits) -> None:
    """Raise CallerError (code "secure_world_inside") for a model that the application cannot open."""
    if manifest.vendor is not None:
        raise cannot("open a vendor's model")
    if manifest.adapts is not None:
        raise cannot("use an adapter")
    if limits.kv != "f16":
        raise cannot(f"keep KV in {limits.kv}")
    if limits.sequences > _MOST_SEQUENCES:
        raise cannot(f"compute more than {_MOST_SEQUENCES} answers of a model at once")


def require(message: object, limits: Limits) -> None:
    """Raise CallerError (code "secure_world_inside") for what the application cannot do."""
    if isinstance(message, Embed) and message.query is not None:
        raise cannot("rank texts")
    if isinstance(message, Generate):
        if isinstance(message.prompt, InfillPrompt):
            raise cannot("fill gaps")
        if limits.shift and message.sampling.shift:
            raise cannot("go on when the context is full")
        if message.rounding != 1:
            raise cannot("round the length of an answer")
        if message.sampling.echo and message.sampling.logprobs is not None:
            raise cannot("tell the probabilities of a prompt's tokens")


def cannot(what: str) -> CallerError:
    """Return the error for what the host's secure world can do, and this one cannot."""
    return CallerError(
        f"The secure world inside the machine cannot {what}.",
        hint="Use `--secure-world host`, which can.",
        code="secure_world_inside",
    )
