"""What an answer looks like on the wire in ollama's API: objects, one a line in a stream."""

from __future__ import annotations

import abc
import json
import time

from flexserve.normal.api.answering import Form, Json
from flexserve.normal.api.cards import moment
from flexserve.normal.api.errors import HttpError
from flexserve.normal.api.forms import token_json
from flexserve.normal.api.parts import Arguments, CallBegun, Part, Parts, Said, Thought
from flexserve.normal.api.sse import line
from flexserve.protocol.answers import Choice, Delta, Finished, Started

_NANOSECONDS = 1_000_000  # of a millisecond


def error_body(error: HttpError) -> Json:
    """Return `error` in ollama's form."""
    return {"error": error.message}


class _OllamaForm(Form):
    """What both forms have in common."""

    media_type = "application/x-ndjson"

    def __init__(self, model: str, parts: Parts, *, with_logprobs: bool = False) -> None:
        self._model = model
        self._with_logprobs = with_logprobs
        self._unsaid: list[Choice] = []  # choices of tokens whose text was held back
        self._began = time.monotonic()
        self._parts = parts
        self._call: Json | None = None  # whose arguments come
        self._arguments = ""

    def encode(self, chunk: Json) -> bytes:
        """Return an object as a line."""
        return line(chunk)

    def ping(self) -> bytes:
        """Return an object that adds nothing: clients take each line for one."""
        return line(self._object(self._content("")))

    def failure(self, error: HttpError) -> Json:
        """Return the error."""
        return error_body(error)

    def began(self, started: Started) -> None:
        """Record how the answer begins."""
        self._parts.began(started)

    def opening(self) -> list[Json]:
        """Return nothing: this form begins with text."""
        return []

    def chunks(self, delta: Delta) -> list[Json]:
        """Return the objects for more text."""
        self._unsaid += delta.choices
        found = self._objects(self._parts.feed(delta.text))
        if found:
            found[0] |= self._logprobs()
        return found

    def closing(self, finished: Finished) -> list[Json]:
        """Return what was held back, and the end with what it took."""
        end = {**self._object(self._content("")), **self._end(finished)}
        rest = [*self._objects(self._parts.finish()), *self._called(), end]
        rest[0] |= self._logprobs()
        return rest

    def whole(self, deltas: list[Delta], finished: Finished) -> Json:
        """Return the answer as one object."""
        text = "".join(delta.text for delta in deltas)
        pieces = self._contents([*self._parts.feed(text), *self._parts.finish()])
        self._unsaid = [choice for delta in deltas for choice in delta.choices]
        answer = self._object(self._joined([*pieces, *self._last()]))
        return {**answer, **self._end(finished), **self._logprobs()}

    @abc.abstractmethod
    def _content(self, text: str, **more: object) -> Json:
        """Return the fields that have the text of an answer, and `more` beside it."""

    @abc.abstractmethod
    def _joined(self, pieces: list[Json]) -> Json:
        """Return the fields of several pieces as those of one."""

    def _object(self, content: Json) -> Json:
        return {"model": self._model, "created_at": moment(time.time()), **content, "done": False}

    def _objects(self, parts: list[Part]) -> list[Json]:
        return [self._object(content) for content in self._contents(parts)]

    def _called(self) -> list[Json]:
        return [self._object(content) for content in self._last()]

    def _contents(self, parts: list[Part]) -> list[Json]:
        """Return the fields for `parts`. A call comes as one, when its arguments are whole."""
        contents: list[Json] = []
        for part in parts:
            if isinstance(part, Arguments):
                self._arguments += part.text
                continue
            contents += self._last()
            match part:
                case Said():
                    contents.append(self._content(part.text))
                case Thought():
                    contents.append(self._content("", thinking=part.text))
                case CallBegun():
                    self._call, self._arguments = {"id": part.id, "name": part.name}, ""
        return contents

    def _last(self) -> list[Json]:
        """Return the fields for the call that is whole now, if there is one."""
        if self._call is None:
            return []
        function = {"name": self._call["name"], "arguments": _object_of(self._arguments)}
        call = {"id": self._call["id"], "function": function}
        self._call = None
        return [self._content("", tool_calls=[call])]

    def _logprobs(self) -> Json:
        """Return the field that has the log-probabilities not said yet, if they are wanted."""
        choices, self._unsaid = self._unsaid, []
        if not (choices and self._with_logprobs):
            return {}
        return {
            "logprobs": [
                {**token_json(choice.token), "top_logprobs": [token_json(other) for other in choice.top]}
                for choice in choices
            ]
        }

    def _end(self, finished: Finished) -> Json:
        timings, usage = finished.timings, finished.usage
        return {
            "done": True,
            "done_reason": finished.reason,
            "total_duration": int((time.monotonic() - self._began) * 1e9),
            "load_duration": int(timings.restore * _NANOSECONDS),
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": int(timings.prefill * _NANOSECONDS),
            "eval_count": usage.completion_tokens,
            "eval_duration": int(timings.decode * _NANOSECONDS),
        }


class ChatObjects(_OllamaForm):
    """/api/chat."""

    def _content(self, text: str, **more: object) -> Json:
        return {"message": {"role": "assistant", "content": text, **more}}

    def _joined(self, pieces: list[Json]) -> Json:
        messages = [piece["message"] for piece in pieces]
        thoughts = "".join(message.get("thinking", "") for message in messages)
        calls = [call for message in messages for call in message.get("tool_calls", [])]
        more = {"thinking": thoughts, "tool_calls": calls}
        text = "".join(message["content"] for message in messages)
        return self._content(text, **{name: value for name, value in more.items() if value})


class GeneratedObjects(_OllamaForm):
    """/api/generate."""

    def _content(self, text: str, **more: object) -> Json:
        return {"response": text, **more}

    def _joined(self, pieces: list[Json]) -> Json:
        thoughts = "".join(piece.get("thinking", "") for piece in pieces)
        more = {"thinking": thoughts} if thoughts else {}
        return self._content("".join(piece["response"] for piece in pieces), **more)


def _object_of(arguments: str) -> Json:
    """Return the arguments of a call as an object, which a model does not always write."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"arguments": arguments}
