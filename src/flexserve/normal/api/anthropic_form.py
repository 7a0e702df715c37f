"""What an answer looks like on the wire in Anthropic's API: a message of blocks, whole or as events."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence

from flexserve.normal.api.answering import Form, Json
from flexserve.normal.api.errors import HttpError
from flexserve.normal.api.parts import Arguments, CallBegun, Part, Parts, Said, Thought
from flexserve.normal.api.sse import named_event
from flexserve.protocol.answers import Delta, Finished, Started


class MessageForm(Form):
    """/v1/messages. `stops` are the request's stop sequences, of which the answer says which ended it."""

    def __init__(
        self,
        model: str,
        stops: Sequence[str],
        failed: Callable[[HttpError], Json],
        parts: Parts,
        *,
        omits_thoughts: bool = False,
    ) -> None:
        self._model, self._stops, self._failed = model, stops, failed
        self._parts, self._omits_thoughts = parts, omits_thoughts
        self._blocks: list[Json] = []  # the last one may be open
        self._open = False
        self._arguments = ""  # of the call that is open
        self._number = uuid.uuid4().hex
        self._prompt_tokens = 0
        self._stop: str | None = None  # the sequence that ended it

    def encode(self, chunk: Json) -> bytes:
        """Return an event with its name."""
        return named_event(chunk)

    def ping(self) -> bytes:
        """Return the event that this API has for it."""
        return named_event({"type": "ping"})

    def failure(self, error: HttpError) -> Json:
        """Return the error event."""
        return self._failed(error)

    def began(self, started: Started) -> None:
        """Record how the answer begins."""
        self._prompt_tokens = started.prompt_tokens
        self._parts.began(started)

    def stopped(self, stop: int) -> None:
        """Record which sequence ended the text."""
        self._stop = self._stops[stop] if stop < len(self._stops) else None

    def opening(self) -> list[Json]:
        """Return the message without content."""
        usage = {"input_tokens": self._prompt_tokens, "output_tokens": 0}
        return [{"type": "message_start", "message": self._message([], None, None, usage)}]

    def chunks(self, delta: Delta) -> list[Json]:
        """Return the events for more text."""
        return [event for part in self._parts.feed(delta.text) for event in self._took(part)]

    def closing(self, finished: Finished) -> list[Json]:
        """Return what was held back, and the end."""
        events = [event for part in self._parts.finish() for event in self._took(part)]
        events += self._closed()
        reason, stop = self._reason(finished)
        end = {"stop_reason": reason, "stop_sequence": stop}
        return [
            *events,
            {"type": "message_delta", "delta": end, "usage": _usage(finished)},
            {"type": "message_stop"},
        ]

    def whole(self, deltas: list[Delta], finished: Finished) -> Json:
        """Return the message."""
        text = "".join(delta.text for delta in deltas)
        for part in [*self._parts.feed(text), *self._parts.finish()]:
            self._took(part)
        self._closed()
        return self._message(self._blocks, *self._reason(finished), _usage(finished))

    def _took(self, part: Part) -> list[Json]:
        """Put `part` into the message; return the events that say so."""
        match part:
            case Said():
                events = self._in_block({"type": "text", "text": ""})
                self._blocks[-1]["text"] += part.text
                return [*events, self._more({"type": "text_delta", "text": part.text})]
            case Thought() if self._omits_thoughts:
                return []
            case Thought():
                events = self._in_block({"type": "thinking", "thinking": "", "signature": ""})
                self._blocks[-1]["thinking"] += part.text
                return [*events, self._more({"type": "thinking_delta", "thinking": part.text})]
            case CallBegun():
                self._arguments = ""
                block = {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}
                return [*self._closed(), self._began_block(block)]
            case Arguments():
                self._arguments += part.text
                return [self._more({"type": "input_json_delta", "partial_json": part.text})]

    def _in_block(self, block: Json) -> list[Json]:
        """Begin `block` unless one of its kind is open; return the events that say so."""
        if self._open and self._blocks[-1]["type"] == block["type"]:
            return []
        return [*self._closed(), self._began_block(block)]

    def _began_block(self, block: Json) -> Json:
        self._blocks.append(block)
        self._open = True
        return {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": dict(block)}

    def _more(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _closed(self) -> list[Json]:
        if not self._open:
            return []
        self._open = False
        if self._blocks[-1]["type"] == "tool_use":
            self._blocks[-1]["input"] = _object(self._arguments)
        return [{"type": "content_block_stop", "index": len(self._blocks) - 1}]

    def _reason(self, finished: Finished) -> tuple[str, str | None]:
        if finished.reason == "length":
            return "max_tokens", None
        if self._parts.calls:
            return "tool_use", None
        if self._stop is not None:
            return "stop_sequence", self._stop
        return "end_turn", None

    def _message(self, content: list[Json], reason: str | None, stop: str | None, usage: Json) -> Json:
        return {
            "id": f"msg_{self._number}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop,
            "usage": usage,
        }


def _usage(finished: Finished) -> Json:
    """Return what an answer took: here, cached tokens do not count as input."""
    usage = finished.usage
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _object(arguments: str) -> Json:
    """Return the arguments of a call as an object, which a model does not always write."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"arguments": arguments}
