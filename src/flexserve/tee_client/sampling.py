"""How tokens are chosen, as the trusted application takes it; and what it says of those that it chose.

The application applies llama.cpp's samplers one after the other. Which ones, and in which order, is said
here, as `trusted/engine/sampler.py` does it. So equal seeds and logits give equal answers.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import struct
from collections.abc import Callable, Sequence

from flexserve.errors import CallerError
from flexserve.protocol.sampling import SamplerName, Sampling
from flexserve.tee_client.messages import Reply, broken, unpacked

# The members of the header's Sampling, in their order.
WORDS = ("seed", "ignore_eos", "min_tokens", "logprobs", "after_samplers", "prompt", "min_keep", "biases")
SIGNED = ("top_k", "repeat_last_n", "dry_allowed_length", "dry_penalty_last_n")
FLOATS = (
    *("temperature", "dynatemp_range", "dynatemp_exponent", "top_p", "min_p", "typical_p", "top_n_sigma"),
    *("xtc_probability", "xtc_threshold", "repeat_penalty", "frequency_penalty", "presence_penalty"),
    *("dry_multiplier", "dry_base", "mirostat_tau", "mirostat_eta"),
)
PLACES = 12  # for samplers
SETTINGS = struct.Struct(f"<{len(WORDS)}I{len(SIGNED)}i{len(FLOATS)}f{PLACES}s")
SCORE = struct.Struct("<If")
_SEEDS = (1 << 32) - 1  # all ones: another one each time
_NO_TOKEN = (1 << 32) - 1


class Choice(enum.IntEnum):
    """Samplers of the application."""

    NONE = 0
    PENALTIES = 1
    DRY = 2
    TOP_N_SIGMA = 3
    TOP_K = 4
    TYP_P = 5
    TOP_P = 6
    MIN_P = 7
    XTC = 8
    TEMPERATURE = 9
    LIKELIEST = 10
    ANY = 11
    MIROSTAT = 12
    MIROSTAT_V2 = 13


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    """A token and the natural logarithm of its probability."""

    token: int
    value: float


@dataclasses.dataclass(frozen=True, slots=True)
class Said:
    """Tokens that were said; and for each, where that was asked for, its own score and the likeliest ones."""

    tokens: list[int]
    scores: list[tuple[Score, list[Score]]]


def settings(sampling: Sampling, tokens: Callable[[str], Sequence[int]], vocabulary: int = 1 << 31) -> bytes:
    """Return the payload of `Ask.SAMPLING`. `tokens`: those of a text, which does not begin one.

    Texts that end an answer, grammars and schemas are not of it: who asks looks after them. Raises
    CallerError for tokens that are not among those of the `vocabulary`.
    """
    biases = [
        (token, -math.inf if one.bias is None else one.bias)
        for one in sampling.logit_bias
        for token in ([one.token] if isinstance(one.token, int) else tokens(one.token))
    ]
    biases += [(token, math.inf) for token in sampling.stop_token_ids if token < vocabulary]
    if any(token >= vocabulary for token, _ in biases):
        raise CallerError(
            "The model has no token of that number.", hint=f"It has {vocabulary} tokens, from 0 on."
        )
    values = {
        "seed": _SEEDS if sampling.seed is None else sampling.seed % _SEEDS,
        "logprobs": 0 if sampling.logprobs is None else sampling.logprobs + 1,
        "prompt": sampling.scores_prompt,
        "biases": len(biases),
        "dynatemp_range": 0.0 if sampling.mirostat else sampling.dynatemp_range,
    }
    numbers = [values.get(name, getattr(sampling, name, None)) for name in (*WORDS, *SIGNED, *FLOATS)]
    breakers = [text.encode().partition(b"\0")[0] for text in sampling.dry_sequence_breakers]
    return b"".join(
        (
            SETTINGS.pack(*numbers, bytes(_choices(sampling))),
            *(SCORE.pack(token, bias) for token, bias in biases),
            *(text + b"\0" for text in breakers if text),
        )
    )


def _choices(sampling: Sampling) -> list[Choice]:
    """Return the samplers; the last one chooses."""
    if sampling.mirostat:
        return [Choice.TEMPERATURE, Choice.MIROSTAT if sampling.mirostat == 1 else Choice.MIROSTAT_V2]
    names = sampling.samplers
    if not _is_greedy(sampling):
        return [*map(_numbered, names), Choice.ANY]
    # Behind the temperature one token is left; what bounds the choice counts before penalties alone.
    names = names[: names.index("temperature")]
    penalties = [at for at, name in enumerate(names) if name in ("penalties", "dry")]
    return [*map(_numbered, names[: max(penalties, default=-1) + 1]), Choice.TEMPERATURE, Choice.LIKELIEST]


def _numbered(name: SamplerName) -> Choice:
    return Choice[name.upper()]


def _is_greedy(sampling: Sampling) -> bool:
    """Return whether the likeliest token is taken: most samplers leave it where it is."""
    moves = {
        "typ_p": sampling.typical_p < 1,
        "xtc": sampling.xtc_probability > 0,
        "temperature": sampling.dynatemp_range > 0,
    }
    cold = sampling.temperature == 0 and "temperature" in sampling.samplers
    return cold and not any(moves.get(name, False) for name in sampling.samplers)


def admitted(tokens: Sequence[int], vocabulary: int) -> bytes:
    """Return the payload of `Ask.ADMIT`: a bit for each of `vocabulary` tokens."""
    bits = bytearray(-(-vocabulary // 8))
    for token in tokens:
        bits[token // 8] |= 1 << token % 8
    return bytes(bits)


def said(reply: Reply, logprobs: int | None) -> Said:
    """Return what `Ask.SAID` answers. `logprobs`: as they were asked for. Raises PeerError."""
    count, width = reply.values[0], 0 if logprobs is None else logprobs + 1
    if len(reply.payload) != count * (4 + SCORE.size * width):
        raise broken("what it says of tokens does not fit")
    tokens, rest = unpacked(reply.payload[: 4 * count]), reply.payload[4 * count :]
    scores = [Score(token, value) for token, value in SCORE.iter_unpack(rest)]
    return Said(tokens, [_row(scores[at : at + width]) for at in range(0, len(scores), width or 1)])


def _row(scores: Sequence[Score]) -> tuple[Score, list[Score]]:
    own, *others = scores
    return own, [each for each in others if each.token != _NO_TOKEN and math.isfinite(each.value)]
