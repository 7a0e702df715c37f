"""What an answer looks like on the wire in llama-server's own API."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from flexserve.normal.api.answering import Json, NumberedForm
from flexserve.normal.api.errors import HttpError
from flexserve.normal.api.forms import token_json
from flexserve.normal.api.pace import timings_of
from flexserve.protocol.answers import Choice, Delta, Finished, Started, TokenLogprob

_ABSENT: Any = object()
_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "unavailable_error",
    501: "not_supported_error",
    503: "unavailable_error",
}


def error_body(error: HttpError) -> Json:
    """Return `error` in llama-server's form."""
    kind = _ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    if error.code == "context_length_exceeded":
        kind = "exceed_context_size_error"
    return {"error": {"code": error.status, "message": error.message, "type": kind, **error.counts}}


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """What an answer tells beside its text.

    `prompts` are those of the answers, "" for one in tokens; `settings`: how the answer is chosen;
    `fields`: paths of what is told, all if there are none; `tokens`: of an answer in one piece, too;
    `probabilities`: of each token and others, `drawn`: as the samplers left them.
    """

    prompts: Sequence[str]
    settings: Json
    stops: Sequence[str] = ()
    fields: Sequence[str] = ()
    tokens: bool = False
    probabilities: bool = False
    drawn: bool = False


class NativeForm(NumberedForm):
    """/completion and /infill."""

    def __init__(self, model: str, told: Told) -> None:
        self._model, self._told = model, told
        self._evaluated = self._predicted = 0
        self._has_line = False
        self._stop: str | None = None  # the string that ended it

    def failure(self, error: HttpError) -> Json:
        """Return the error."""
        return error_body(error)

    def began(self, started: Started) -> None:
        """Record how the answer begins."""
        self._evaluated = started.prompt_tokens

    def stopped(self, stop: int) -> None:
        """Record which string ended the text."""
        self._stop = self._told.stops[stop] if stop < len(self._told.stops) else ""

    def opening(self) -> list[Json]:
        """Return nothing: this form begins with text."""
        return []

    def chunks(self, delta: Delta) -> list[Json]:
        """Return the chunk for more text."""
        return [{**self._took([delta]), "stop": False}]

    def blank(self) -> Json:
        """Return a chunk that adds nothing."""
        return {**self._took([]), "stop": False}

    def closing(self, finished: Finished) -> list[Json]:
        """Return the chunk that has all but the text."""
        return [self._end("", [], finished)]

    def whole(self, deltas: list[Delta], finished: Finished) -> Json:
        """Return the answer as one object: of its fields those that are asked for."""
        took = self._took(deltas)
        tokens = took["tokens"] if self._told.tokens else []
        return _picked({**took, **self._end(took["content"], tokens, finished)}, self._told.fields)

    def place(self, chunk: Json, index: int, _head: Json) -> None:
        """Give the chunk of answer `index` its number, and its prompt."""
        chunk["index"] = index
        if "prompt" in chunk:
            chunk["prompt"] = self._told.prompts[index]

    def joined(self, wholes: list[Json], _usage: Json) -> list[Json]:
        """Return the answers as a list."""
        for index, whole in enumerate(wholes):
            self.place(whole, index, {})
        return wholes

    def _took(self, deltas: list[Delta]) -> Json:
        text = "".join(delta.text for delta in deltas)
        self._predicted += sum(delta.tokens for delta in deltas)
        self._has_line = self._has_line or "\n" in text
        chunk: Json = {
            "index": 0,
            "content": text,
            "tokens": [token for delta in deltas for token in delta.ids],
            "id_slot": -1,
            "tokens_predicted": self._predicted,
            "tokens_evaluated": self._evaluated,
        }
        choices = [choice for delta in deltas for choice in delta.choices]
        if not (choices and self._told.probabilities):
            return chunk
        return {**chunk, "completion_probabilities": _probabilities(choices, drawn=self._told.drawn)}

    def _end(self, content: str, tokens: list[int], finished: Finished) -> Json:
        usage, told = finished.usage, self._told
        kind = "limit" if finished.reason == "length" else "eos" if self._stop is None else "word"
        limit = told.settings["n_predict"]
        return {
            "index": 0,
            "content": content,
            "tokens": tokens,
            "id_slot": -1,
            "stop": True,
            "model": self._model,
            "tokens_predicted": usage.completion_tokens,
            "tokens_evaluated": usage.prompt_tokens,
            "generation_settings": told.settings,
            "prompt": told.prompts[0],
            "has_new_line": self._has_line,
            # The context was full before the answer was as long as it might be.
            "truncated": finished.shifted
            or (kind == "limit" and (limit < 0 or usage.completion_tokens < limit)),
            "stop_type": kind,
            "stopping_word": self._stop or "",
            "tokens_cached": usage.prompt_tokens + usage.completion_tokens,
            "timings": timings_of(finished),
        }


def _picked(answer: Json, paths: Sequence[str]) -> Json:
    """Return what is at each of `paths` (names between slashes) in `answer`, all of it without any."""
    if not paths:
        return answer
    found: Json = {}
    for path in paths:
        value: Any = answer
        for name in path.split("/"):
            value = value.get(name, _ABSENT) if isinstance(value, dict) else _ABSENT
        if value is not _ABSENT:
            found[path] = value
    return found


def _probabilities(choices: list[Choice], *, drawn: bool) -> list[Json]:
    tell, others = (_probability, "top_probs") if drawn else (_token, "top_logprobs")
    return [{**tell(choice.token), others: [tell(other) for other in choice.top]} for choice in choices]


def _token(token: TokenLogprob) -> Json:
    return {"id": token.id, **token_json(token)}


def _probability(token: TokenLogprob) -> Json:
    told = _token(token)
    probability = math.exp(told.pop("logprob"))
    return {**told, "prob": probability}
