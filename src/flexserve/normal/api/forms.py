"""What an answer looks like on the wire: OpenAI's chat form and its plain completion form.

A form turns the messages of the secure world into chunks of a stream, or collects them into one
object. It holds one request's state and does no I/O.
"""

from __future__ import annotations

import abc
import math
import time
import uuid
from typing import Any

from flexserve.world.messages import Choice, Delta, Finished, TokenLogprob

Json = dict[str, Any]
_LEAST_LOGPROB = -9999.0  # what OpenAI writes for "impossible": JSON has no infinity


class Form(abc.ABC):
    """One request's wire form. `model` is what the client called it."""

    def __init__(self, model: str, *, id_prefix: str, kind: str) -> None:
        self._kind = kind  # the "object" of a stream's chunks
        self._head: Json = {
            "id": f"{id_prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    @abc.abstractmethod
    def opening(self) -> Json | None:
        """Return the chunk before any text, if the form has one."""

    @abc.abstractmethod
    def chunk(self, delta: Delta) -> Json:
        """Return the chunk for more text."""

    @abc.abstractmethod
    def closing(self, finished: Finished) -> Json:
        """Return the last chunk with a choice: the reason to stop."""

    @abc.abstractmethod
    def whole(self, deltas: list[Delta], finished: Finished) -> Json:
        """Return the answer as one object."""

    def usage(self, finished: Finished) -> Json:
        """Return the chunk of usage, which has no choices."""
        return {**self._object(self._kind, []), "usage": _usage(finished)}

    def _object(self, kind: str, choices: list[Json]) -> Json:
        return {**self._head, "object": kind, "choices": choices}


class ChatForm(Form):
    """/v1/chat/completions."""

    def __init__(self, model: str, *, with_logprobs: bool) -> None:
        super().__init__(model, id_prefix="chatcmpl", kind="chat.completion.chunk")
        self._with_logprobs = with_logprobs

    def opening(self) -> Json | None:
        """Return the role, which comes before any text."""
        return self._chunk({"role": "assistant", "content": ""})

    def chunk(self, delta: Delta) -> Json:
        """Return the chunk for more text."""
        return self._chunk({"content": delta.text}, logprobs=self._logprobs(delta.choices))

    def closing(self, finished: Finished) -> Json:
        """Return the chunk with the reason to stop."""
        return self._chunk({}, reason=finished.reason)

    def whole(self, deltas: list[Delta], finished: Finished) -> Json:
        """Return the answer as one object, usage included."""
        text = "".join(delta.text for delta in deltas)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs([choice for delta in deltas for choice in delta.choices]),
            "finish_reason": finished.reason,
        }
        return {**self._object("chat.completion", [choice]), "usage": _usage(finished)}

    def _chunk(self, delta: Json, *, logprobs: Json | None = None, reason: str | None = None) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._object(self._kind, [choice])

    def _logprobs(self, choices: list[Choice]) -> Json | None:
        if not self._with_logprobs:
            return None
        content = [
            {**_token(choice.token), "top_logprobs": [_token(other) for other in choice.top]}
            for choice in choices
        ]
        return {"content": content, "refusal": None}


class CompletionForm(Form):
    """/v1/completions."""

    def __init__(self, model: str, *, with_logprobs: bool) -> None:
        super().__init__(model, id_prefix="cmpl", kind="text_completion")
        self._with_logprobs = with_logprobs
        self._offset = 0  # characters of the tokens seen so far

    def opening(self) -> Json | None:
        """Return None: this form begins with text."""
        return None

    def chunk(self, delta: Delta) -> Json:
        """Return the chunk for more text."""
        return self._object(self._kind, [self._choice(delta.text, delta.choices, None)])

    def closing(self, finished: Finished) -> Json:
        """Return the chunk with the reason to stop."""
        return self._object(self._kind, [self._choice("", [], finished.reason)])

    def whole(self, deltas: list[Delta], finished: Finished) -> Json:
        """Return the answer as one object, usage included."""
        text = "".join(delta.text for delta in deltas)
        choices = [choice for delta in deltas for choice in delta.choices]
        choice = self._choice(text, choices, finished.reason)
        return {**self._object(self._kind, [choice]), "usage": _usage(finished)}

    def _choice(self, text: str, choices: list[Choice], reason: str | None) -> Json:
        return {"index": 0, "text": text, "logprobs": self._logprobs(choices), "finish_reason": reason}

    def _logprobs(self, choices: list[Choice]) -> Json | None:
        if not self._with_logprobs:
            return None
        offsets = []
        for choice in choices:
            offsets.append(self._offset)
            self._offset += len(choice.token.text)
        return {
            "tokens": [choice.token.text for choice in choices],
            "token_logprobs": [_finite(choice.token.logprob) for choice in choices],
            "top_logprobs": [{top.text: _finite(top.logprob) for top in choice.top} for choice in choices],
            "text_offset": offsets,
        }


def _token(token: TokenLogprob) -> Json:
    return {"token": token.text, "logprob": _finite(token.logprob), "bytes": list(token.text.encode())}


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _LEAST_LOGPROB


def _usage(finished: Finished) -> Json:
    usage, timings = finished.usage, finished.timings
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "timings": {
            "queue_ms": timings.queue,
            "restore_ms": timings.restore,
            "decrypt_ms": timings.decrypt,
            "prefill_ms": timings.prefill,
            "decode_ms": timings.decode,
            "ttft_ms": timings.ttft,
            "restored_bytes": timings.restored_bytes,
        },
    }
