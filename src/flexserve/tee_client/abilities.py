"""What of a request the trusted application can do; all else is refused by name, and done by the host."""

from __future__ import annotations

import struct

import msgspec

from flexserve.errors import CallerError
from flexserve.protocol.prompts import ChatPrompt, InfillPrompt
from flexserve.protocol.requests import Convert, Embed, Generate, Try, Warm
from flexserve.protocol.sampling import Sampling

Message = Generate | Embed | Convert | Warm | Try

# What the application chooses tokens by, and what is done with its tokens here.
_DONE = frozenset(
    {"max_tokens", "stop", "stop_token_ids", "seed", "temperature", "shift", "n_keep", "n_discard", "echo"}
)
# What changes nothing about the likeliest token.
_OF_CHANCE = frozenset(
    {
        "top_k",
        "top_p",
        "min_p",
        "min_keep",
        "top_n_sigma",
        "samplers",
        "dynatemp_range",
        "dynatemp_exponent",
        "repeat_last_n",
        "xtc_threshold",
        "mirostat_tau",
        "mirostat_eta",
        "dry_base",
        "dry_allowed_length",
        "dry_penalty_last_n",
        "dry_sequence_breakers",
    }
)
_USUAL = Sampling()


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
    known = _DONE | _OF_CHANCE if sampling.temperature == 0 else _DONE
    for name in sampling.__struct_fields__:
        if name not in known and getattr(sampling, name) != getattr(_USUAL, name):
            raise cannot(f"follow {name}")
    if sampling.temperature > 0:
        _require_all_words(sampling)


def _require_all_words(sampling: Sampling) -> None:
    """Raise unless all tokens may come, as the temperature has them."""
    plain = msgspec.structs.replace(sampling, top_k=0, top_p=1.0, min_p=0.0)
    if sampling != plain and set(sampling.samplers) & {"top_k", "top_p", "min_p"}:
        raise cannot("leave out unlikely tokens (top_k, top_p, min_p)")


def choice(sampling: Sampling, seed: int) -> tuple[int, int]:
    """Return how tokens are chosen, as numbers of a message; `seed` where the request has none."""
    bits = struct.unpack("<I", struct.pack("<f", sampling.temperature))[0]
    return bits, (seed if sampling.seed is None else sampling.seed) % (1 << 32)


def cannot(what: str) -> CallerError:
    """Return the error for what the host's secure world can do, and this one cannot."""
    return CallerError(
        f"The secure world inside the machine cannot {what}.",
        hint="Start the server with `--secure-world host`, which can.",
        code="secure_world_inside",
    )
