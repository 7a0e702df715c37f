"""How an answer is chosen: one struct for every façade, with the ranges that llama.cpp's samplers take.

Defaults are llama.cpp's. Façades translate the names and forms of their own APIs into it.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from flexserve.protocol.bounds import MAX_STOPS, MAX_TOP_LOGPROBS, Schema, Struct

MAX_STOP_TOKENS = 64
MAX_ANSWER_TOKENS = 1 << 20  # of an answer
MAX_BIASES = 1024
MAX_BREAKERS = 16
MAX_TOKEN = (1 << 31) - 1  # llama.cpp's tokens are 32-bit numbers

SamplerName = Literal[
    "penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"
]
SAMPLERS: tuple[SamplerName, ...] = get_args(SamplerName)  # in llama.cpp's order

TokenId = Annotated[int, Meta(ge=0, le=MAX_TOKEN)]
Limit = Annotated[int, Meta(ge=0, le=MAX_ANSWER_TOKENS)]
Part = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(ge=0, le=100)]
Penalty = Annotated[float, Meta(ge=-100, le=100)]
Window = Annotated[int, Meta(ge=-1, le=MAX_ANSWER_TOKENS)]  # tokens, -1: the whole context
Stop = Annotated[str, Meta(min_length=1, max_length=256)]
Breaker = Annotated[str, Meta(min_length=1, max_length=40)]  # llama.cpp looks at 40 characters


class LogitBias(Struct, frozen=True):
    """What is added to the logit of a token, or of each token of a text; None: it never comes."""

    token: TokenId | Annotated[str, Meta(min_length=1, max_length=256)]
    bias: Annotated[float, Meta(ge=-1e6, le=1e6)] | None


class Sampling(Struct, frozen=True):
    """How tokens are chosen, and when an answer ends.

    `samplers` are applied in their order; those that are not named are not applied. With `mirostat`,
    only `temperature` comes before it, as in llama.cpp. Penalties count the prompt's tokens, too.
    """

    # ---- the end of the answer
    max_tokens: Limit | None = None  # None: to the context's end
    shift: bool = True  # False: it ends with the context, also where that is shifted when it is full
    n_keep: Window = 0  # tokens of the prompt that stay then, beside the one that begins a text; -1: all …
    n_discard: Limit = 0  # … and how many of those behind them go; 0: half
    min_tokens: Limit = 0  # before these, neither a token nor a text ends the answer
    ignore_eos: bool = False  # no token of the model's own ends it
    stop: Annotated[list[Stop], Meta(max_length=MAX_STOPS)] = msgspec.field(default_factory=list)
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_STOP_TOKENS)] = msgspec.field(
        default_factory=list
    )
    # ---- the choice of a token
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None = None  # None: another one each time
    samplers: Annotated[list[SamplerName], Meta(max_length=len(SAMPLERS))] = msgspec.field(
        default_factory=lambda: list(SAMPLERS)
    )
    temperature: Positive = 0.8  # 0: the likeliest token
    dynatemp_range: Positive = 0.0  # the temperature is this much lower or higher, by entropy
    dynatemp_exponent: Positive = 1.0
    top_k: Annotated[int, Meta(ge=0, le=MAX_TOKEN)] = 40  # 0: all
    top_p: Part = 0.95
    min_p: Part = 0.05
    typical_p: Part = 1.0
    top_n_sigma: Annotated[float, Meta(ge=-1, le=100)] = -1.0  # 0 and less: all
    min_keep: Annotated[int, Meta(ge=0, le=MAX_TOKEN)] = 0
    xtc_probability: Part = 0.0
    xtc_threshold: Part = 0.1
    repeat_last_n: Window = 64  # tokens that the three penalties look back at
    repeat_penalty: Annotated[float, Meta(gt=0, le=100)] = 1.0
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    dry_multiplier: Positive = 0.0
    dry_base: Positive = 1.75
    dry_allowed_length: Annotated[int, Meta(ge=0, le=MAX_ANSWER_TOKENS)] = 2
    dry_penalty_last_n: Window = -1
    dry_sequence_breakers: Annotated[list[Breaker], Meta(max_length=MAX_BREAKERS)] = msgspec.field(
        default_factory=lambda: ["\n", ":", '"', "*"]
    )
    mirostat: Literal[0, 1, 2] = 0
    mirostat_tau: Positive = 5.0
    mirostat_eta: Positive = 0.1
    logit_bias: Annotated[list[LogitBias], Meta(max_length=MAX_BIASES)] = msgspec.field(default_factory=list)
    # ---- what the answer may be: one of these
    schema: Schema | None = None  # a JSON schema ("{}": any object); with tools, a call is as good
    grammar: Schema | None = None  # llama.cpp's GBNF
    # ---- what is said of it
    # None: no logprobs; n: those of the chosen token and of the n likeliest at each position.
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    # Of the tokens that the samplers left, as they left them; otherwise of all, as the model has them.
    after_samplers: bool = False
    echo: bool = False  # the prompt comes before the answer; with logprobs, those of its tokens

    @property
    def scores_prompt(self) -> bool:
        """Whether the probabilities of the prompt's tokens are asked for: all are computed then."""
        return self.echo and self.logprobs is not None

    def __post_init__(self) -> None:
        """Raise ValueError for numbers that are none, and for what excludes each other."""
        values = (getattr(self, name) for name in self.__struct_fields__)
        if any(isinstance(value, float) and not math.isfinite(value) for value in values):
            raise ValueError("a number is not finite")
        if self.schema is not None and self.grammar is not None:
            raise ValueError("an answer follows a schema or a grammar, not both")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens is larger than max_tokens")
