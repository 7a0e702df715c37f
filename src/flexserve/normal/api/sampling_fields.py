"""How clients say how an answer is chosen: OpenAI's fields, llama-server's, and vLLM's names for the same.

Whatever is not said is as llama.cpp has it (protocol.sampling).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from flexserve.normal.api.tools import Format, compact, schema_of
from flexserve.protocol.bounds import MAX_SCHEMA, MAX_STOPS
from flexserve.protocol.sampling import (
    MAX_ANSWER_TOKENS,
    MAX_BIASES,
    MAX_BREAKERS,
    MAX_STOP_TOKENS,
    MAX_TOKEN,
    LogitBias,
    SamplerName,
    Sampling,
)

T = TypeVar("T")

# llama-server's letters for an order of samplers.
_LETTERS: dict[str, SamplerName] = {
    "e": "penalties",
    "d": "dry",
    "s": "top_n_sigma",
    "k": "top_k",
    "y": "typ_p",
    "p": "top_p",
    "m": "min_p",
    "x": "xtc",
    "t": "temperature",
}
_NUMBER = re.compile(r"[0-9]{1,10}")


def _known_letters(value: str) -> str:
    if not set(value) <= _LETTERS.keys():
        raise PydanticCustomError("samplers", "Its letters are {letters}", {"letters": "".join(_LETTERS)})
    return value


Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Positive = Annotated[float, Field(ge=0, le=100)]
_Penalty = Annotated[float, Field(ge=-100, le=100)]
_RepeatPenalty = Annotated[float, Field(gt=0, le=100)]
_Window = Annotated[int, Field(ge=-1, le=MAX_ANSWER_TOKENS)]
_Count = Annotated[int, Field(ge=0, le=MAX_ANSWER_TOKENS)]
_MaxTokens = Annotated[int, Field(ge=-1, le=MAX_ANSWER_TOKENS)]
_Token = Annotated[int, Field(ge=0, le=MAX_TOKEN)]
_Bias = Annotated[float, Field(ge=-1e6, le=1e6)] | bool
_Biased = Annotated[str, StringConstraints(min_length=1, max_length=256)]
_BiasPair = Annotated[list[_Token | _Biased | _Bias], Field(min_length=2, max_length=2)]
_Letters = Annotated[str, StringConstraints(max_length=len(_LETTERS)), AfterValidator(_known_letters)]
_Breaker = Annotated[str, StringConstraints(min_length=1, max_length=40)]


def _field(meaning: str) -> Any:
    """Return a field that need not be given."""
    return Field(None, description=meaning)


class SamplingFields(BaseModel):
    """The fields of all requests for text."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    max_tokens: _MaxTokens | None = _field("tokens of the answer at most; -1: to the context's end")
    n_predict: Annotated[int, Field(ge=-2, le=MAX_ANSWER_TOKENS)] | None = _field(
        "llama-server's `max_tokens`"
    )
    n_keep: _Window | None = _field(
        "tokens of the prompt that stay where a full context is shifted (`flexserve set`); -1: all"
    )
    n_discard: _Count | None = _field("how many of those behind them go then; 0: half")
    min_tokens: _Count | None = _field("before these, neither a token nor a text ends the answer")
    ignore_eos: bool | None = _field("none of the model's own tokens ends the answer")
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = _field(
        "texts before which the answer ends"
    )
    stop_token_ids: Annotated[list[_Token], Field(max_length=MAX_STOP_TOKENS)] | None = _field(
        "tokens before which the answer ends"
    )
    seed: Annotated[int, Field(ge=-1, le=(1 << 63) - 1)] | None = _field(
        "equal seeds give equal answers; -1: another one each time"
    )
    samplers: Annotated[list[SamplerName], Field(max_length=len(_LETTERS))] | _Letters | None = _field(
        "which samplers are applied, in their order: names, or llama-server's letters"
    )
    temperature: _Positive | None = _field("0: the likeliest token")
    dynatemp_range: _Positive | None = _field("the temperature is this much lower or higher, by entropy")
    dynatemp_exponent: _Positive | None = _field("how entropy becomes a temperature")
    top_k: Annotated[int, Field(ge=-1, le=MAX_TOKEN)] | None = _field("the likeliest k tokens; 0 or -1: all")
    top_p: _Share | None = _field("the likeliest tokens that have this probability together")
    min_p: _Share | None = _field("tokens of at least this part of the likeliest one's probability")
    typical_p: _Share | None = _field("the most typical tokens that have this probability together")
    typ_p: _Share | None = _field("another name of `typical_p`")
    top_n_sigma: Annotated[float, Field(ge=-1, le=100)] | None = _field(
        "tokens whose logits are at most so many standard deviations below the highest; 0 or -1: all"
    )
    min_keep: _Token | None = _field("tokens that a sampler leaves at least")
    xtc_probability: _Share | None = _field("how often the likeliest tokens are left out")
    xtc_threshold: _Share | None = _field("the probability from which on they are, but for the last of them")
    repeat_last_n: _Window | None = _field(
        "tokens that the penalties below look back at; -1: the whole context"
    )
    repeat_penalty: _RepeatPenalty | None = _field("divides the logits of tokens that came before")
    repetition_penalty: _RepeatPenalty | None = _field("another name of `repeat_penalty`")
    frequency_penalty: _Penalty | None = _field("is taken off a logit for each time that the token came")
    presence_penalty: _Penalty | None = _field("is taken off the logit of tokens that came before")
    dry_multiplier: _Positive | None = _field("strength of the penalty on sequences that came before")
    dry_base: _Positive | None = _field("how it grows with their length")
    dry_allowed_length: _Count | None = _field("length up to which they are free")
    dry_penalty_last_n: _Window | None = _field("tokens that it looks back at; -1: the whole context")
    dry_sequence_breakers: Annotated[list[_Breaker], Field(max_length=MAX_BREAKERS)] | None = _field(
        "texts at which sequences end"
    )
    mirostat: Annotated[int, Field(ge=0, le=2)] | None = _field(
        "1 or 2: Mirostat in place of all samplers but the temperature"
    )
    mirostat_tau: _Positive | None = _field("its target entropy")
    mirostat_eta: _Positive | None = _field("its learning rate")
    logit_bias: (
        Annotated[dict[_Biased, _Bias], Field(max_length=MAX_BIASES)]
        | Annotated[list[_BiasPair], Field(max_length=MAX_BIASES)]
        | None
    ) = _field("what is added to logits, by token or text, as a map or pairs; false: never")
    grammar: Annotated[str, StringConstraints(max_length=MAX_SCHEMA)] | None = _field(
        "llama.cpp's grammar (GBNF) that the answer follows"
    )
    json_schema: dict[str, Any] | None = _field("llama-server's short form of `response_format`")
    response_format: Format | None = _field("JSON by schema")

    def sampling(self, **more: Any) -> Sampling:
        """Return what is asked for; `more` are fields of Sampling, which go first.

        Raises PydanticCustomError for fields that contradict each other.
        """
        given = {name: getattr(self, name) for name in _SAME}
        given |= {
            "max_tokens": self._limit(),
            "seed": None if self.seed == -1 else self.seed,
            "stop": [self.stop] if isinstance(self.stop, str) else self.stop,
            "samplers": self._samplers(),
            "top_k": None if self.top_k is None else max(0, self.top_k),
            "typical_p": agreed(typical_p=self.typical_p, typ_p=self.typ_p),
            "repeat_penalty": agreed(
                repeat_penalty=self.repeat_penalty, repetition_penalty=self.repetition_penalty
            ),
            "logit_bias": self._biases(),
            "grammar": self.grammar or None,
            "schema": self._schema(),
        }
        given = {name: value for name, value in (given | more).items() if value is not None}
        _check(given)
        return Sampling(**given)

    def limits(self) -> dict[str, int | None]:
        """Return the limit of the answer by the names that it has."""
        return {"max_tokens": self.max_tokens, "n_predict": self.n_predict}

    def _limit(self) -> int | None:
        limit = agreed(**self.limits())
        return None if limit is None or limit < 0 else limit

    def _samplers(self) -> list[SamplerName] | None:
        if isinstance(self.samplers, str):
            return [_LETTERS[letter] for letter in self.samplers]
        return self.samplers

    def _schema(self) -> str | None:
        described = None if self.json_schema is None else compact(self.json_schema, "json_schema")
        return agreed(json_schema=described, response_format=schema_of(self.response_format))

    def _biases(self) -> list[LogitBias] | None:
        if self.logit_bias is None:
            return None
        pairs = self.logit_bias.items() if isinstance(self.logit_bias, dict) else self.logit_bias
        return [_bias(token, value) for token, value in pairs]


# Fields of Sampling that clients give by the same name and in the same form.
_SAME = (
    *("n_keep", "n_discard"),
    *("min_tokens", "ignore_eos", "stop_token_ids", "temperature", "dynatemp_range", "dynatemp_exponent"),
    *("top_p", "min_p", "top_n_sigma", "min_keep", "xtc_probability", "xtc_threshold", "repeat_last_n"),
    *("frequency_penalty", "presence_penalty", "dry_multiplier", "dry_base", "dry_allowed_length"),
    *("dry_penalty_last_n", "dry_sequence_breakers", "mirostat", "mirostat_tau", "mirostat_eta"),
)


def agreed(**values: T | None) -> T | None:
    """Return the value of one field under several names. Raises PydanticCustomError when they differ."""
    found = [(name, value) for name, value in values.items() if value is not None]
    if not found:
        return None
    first, meant = found[0]
    for name, value in found[1:]:
        if value != meant:
            raise PydanticCustomError(
                "twice", "It says something else than {other}", {"param": name, "other": first}
            )
    return meant


def _bias(token: Any, value: Any) -> LogitBias:
    """Return a pair of `logit_bias` as it crosses to the secure world: a number in digits is a token."""
    if isinstance(token, str) and _NUMBER.fullmatch(token):
        token = int(token)
    known = isinstance(token, str) or (
        isinstance(token, int) and 0 <= token <= MAX_TOKEN and token is not True
    )
    if not known or value is True or isinstance(value, str):
        raise PydanticCustomError(
            "bias", "It has pairs of a token or text, and a number or false", {"param": "logit_bias"}
        )
    return LogitBias(token, None if value is False else float(value))


def _check(given: Mapping[str, Any]) -> None:
    if "grammar" in given and "schema" in given:
        raise PydanticCustomError("twice", "The answer follows a schema already", {"param": "grammar"})
    if given.get("min_tokens", 0) > given.get("max_tokens", MAX_ANSWER_TOKENS):
        raise PydanticCustomError("order", "It is larger than max_tokens", {"param": "min_tokens"})
