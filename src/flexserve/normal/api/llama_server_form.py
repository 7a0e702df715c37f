"""What an answer looks like on the wire in llama-server's own API."""

from __future__ import annotations

from collections.abc import Sequence

from flexserve.normal.api.answering import Form, Json
from flexserve.normal.api.errors import HttpError
from flexserve.normal.api.forms import token_json
from flexserve.protocol.messages import Choice, Delta, Finished, Started, TokenLogprob

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
    return {"error": {"code": error.status, "message": error.message, "type": kind}}


class NativeForm(Form):
    """/completion and /infill. `settings` is what the answer repeats of its request."""

    def __init__(
        self, model: str, prompt: str, settings: Json, stops: Sequence[str], *, with_tokens: bool
    ) -> None:
        self._model, self._prompt, self._settings, self._stops = model, prompt, settings, stops
        self._with_tokens = with_tokens
        self._with_probabilities = bool(settings.get("logprobs"))
        self._evaluated = self._predicted = 0
        self._tokens: list[int] = []
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
        self._stop = self._stops[stop] if stop < len(self._stops) else ""

    def opening(self) -> list[Json]:
        """Return nothing: this form begins with text."""
        return []

    def chunks(self, delta: Delta) -> list[Json]:
        """Return the chunk for more text."""
        return [{**self._took([delta]), "stop": False}]

    def closing(self, finished: Finished) -> list[Json]:
        """Return the chunk that has all but the text."""
        return [self._end("", finished)]

    def whole(self, deltas: list[Delta], finished: Finished) -> Json:
        """Return the answer as one object."""
        took = self._took(deltas)
        return {**took, **self._end(took["content"], finished), "tokens": self._tokens}

    def _took(self, deltas: list[Delta]) -> Json:
        text = "".join(delta.text for delta in deltas)
        self._predicted += sum(delta.tokens for delta in deltas)
        self._has_line = self._has_line or "\n" in text
        choices = [choice for delta in deltas for choice in delta.choices]
        tokens = [choice.token.id for choice in choices] if self._with_tokens else []
        self._tokens += tokens
        chunk: Json = {
            "index": 0,
            "content": text,
            "tokens": tokens,
            "id_slot": -1,
            "tokens_predicted": self._predicted,
            "tokens_evaluated": self._evaluated,
        }
        if not (choices and self._with_probabilities):
            return chunk
        return {**chunk, "completion_probabilities": _probabilities(choices)}

    def _end(self, content: str, finished: Finished) -> Json:
        usage, timings = finished.usage, finished.timings
        kind = "limit" if finished.reason == "length" else "eos" if self._stop is None else "word"
        computed = usage.prompt_tokens - usage.cached_tokens
        return {
            "index": 0,
            "content": content,
            "tokens": [],
            "id_slot": -1,
            "stop": True,
            "model": self._model,
            "tokens_predicted": usage.completion_tokens,
            "tokens_evaluated": usage.prompt_tokens,
            "generation_settings": self._settings,
            "prompt": self._prompt,
            "has_new_line": self._has_line,
            "truncated": False,
            "stop_type": kind,
            "stopping_word": self._stop or "",
            "tokens_cached": usage.prompt_tokens + usage.completion_tokens,
            "timings": {
                "cache_n": usage.cached_tokens,
                **_pace("prompt", computed, timings.prefill),
                **_pace("predicted", usage.completion_tokens, timings.decode),
            },
        }


def _pace(of: str, count: int, milliseconds: float) -> Json:
    return {
        f"{of}_n": count,
        f"{of}_ms": milliseconds,
        f"{of}_per_token_ms": milliseconds / count if count else 0.0,
        f"{of}_per_second": 1000 * count / milliseconds if milliseconds else 0.0,
    }


def _probabilities(choices: list[Choice]) -> list[Json]:
    return [
        {**_token(choice.token), "top_logprobs": [_token(other) for other in choice.top]}
        for choice in choices
    ]


def _token(token: TokenLogprob) -> Json:
    return {"id": token.id, **token_json(token)}
