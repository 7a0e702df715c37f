"""What of a request the trusted application can do; all else is refused by name, and done by the host."""

from __future__ import annotations

from flexserve.errors import CallerError
from flexserve.protocol.prompts import InfillPrompt
from flexserve.protocol.requests import Convert, Embed, Generate, Try, Warm

Message = Generate | Embed | Convert | Warm | Try


def require(message: Message) -> None:
    """Raise CallerError (code "secure_world_inside") for what the application cannot do."""
    if isinstance(message, Embed) and message.query is not None:
        raise cannot("rank texts")
    if isinstance(message, Generate):
        if isinstance(message.prompt, InfillPrompt):
            raise cannot("fill gaps")
        if message.rounding != 1:
            raise cannot("round the length of an answer")
        if message.sampling.echo and message.sampling.logprobs is not None:
            raise cannot("tell the probabilities of a prompt's tokens")


def cannot(what: str) -> CallerError:
    """Return the error for what the host's secure world can do, and this one cannot."""
    return CallerError(
        f"The secure world inside the machine cannot {what}.",
        hint="Start the server with `--secure-world host`, which can.",
        code="secure_world_inside",
    )
