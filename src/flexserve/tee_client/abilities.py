"""What of a request the trusted application can do; all else is refused by name, and done by the host."""

from __future__ import annotations

from flexserve.errors import CallerError
from flexserve.protocol.prompts import ChatPrompt, InfillPrompt
from flexserve.protocol.requests import Convert, Embed, Generate, Try, Warm
from flexserve.protocol.sampling import Sampling

Message = Generate | Embed | Convert | Warm | Try


def require(message: Message) -> None:
    """Raise CallerError (code "secure_world_inside") for what the application cannot do."""
    if isinstance(message, Embed):
        raise cannot("rank texts" if message.query is not None else "make vectors of texts")
    if isinstance(message, Generate):
        if isinstance(message.prompt, InfillPrompt):
            raise cannot("fill gaps")
        if isinstance(message.prompt, ChatPrompt) and message.prompt.thought_tokens is not None:
            raise cannot("end a thought after so many tokens")
        if message.rounding != 1:
            raise cannot("round the length of an answer")
        _require_sampling(message.sampling)


def _require_sampling(sampling: Sampling) -> None:
    for name in ("schema", "grammar"):
        if getattr(sampling, name) is not None:
            raise cannot(f"follow {name}")
    if sampling.echo and sampling.logprobs is not None:
        raise cannot("tell the log-probabilities of a prompt")


def cannot(what: str) -> CallerError:
    """Return the error for what the host's secure world can do, and this one cannot."""
    return CallerError(
        f"The secure world inside the machine cannot {what}.",
        hint="Start the server with `--secure-world host`, which can.",
        code="secure_world_inside",
    )
