"""What an answer looks like on the wire in OpenAI's Responses API: items, whole or as events."""

from __future__ import annotations

import time
import uuid

from flexserve.normal.api.answering import Json, PacedForm
from flexserve.normal.api.errors import HttpError
from flexserve.normal.api.forms import token_json
from flexserve.normal.api.pace import timings_of
from flexserve.normal.api.parts import Arguments, CallBegun, Part, Parts, Said, Thought
from flexserve.normal.api.sse import named_event
from flexserve.protocol.answers import Choice, Delta, Finished, Started


class ResponseForm(PacedForm):
    """/v1/responses. `echo` is what the response repeats of its request."""

    def __init__(self, model: str, echo: Json, parts: Parts, *, with_logprobs: bool) -> None:
        self._head: Json = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            **echo,
        }
        self._with_logprobs = with_logprobs
        self._parts = parts
        self._thought_tokens = self._undecided = 0  # tokens of thoughts; tokens of text that was held back
        self._items: list[Json] = []  # the last one may be open: it still grows
        self._open = False
        self._unplaced: list[Json] = []  # log-probabilities of text that is held back
        self._numbers = 0  # of events

    def encode(self, chunk: Json) -> bytes:
        """Return an event with its name and number."""
        chunk = {**chunk, "sequence_number": self._numbers}
        self._numbers += 1
        return named_event(chunk)

    def failure(self, error: HttpError) -> Json:
        """Return the event of a response that failed."""
        reason = {"code": error.code or error.type, "message": error.message}
        return {"type": "response.failed", "response": self._response("failed", error=reason)}

    def began(self, started: Started) -> None:
        """Record how the answer begins."""
        self._parts.began(started)

    def opening(self) -> list[Json]:
        """Return the events of a response that has nothing yet."""
        response = self._response("in_progress")
        return [{"type": f"response.{kind}", "response": response} for kind in ("created", "in_progress")]

    def chunks(self, delta: Delta) -> list[Json]:
        """Return the events for more text."""
        self._note(delta.choices)
        events = [event for part in self._parts.feed(delta.text) for event in self._took(part)]
        self._undecided += delta.tokens
        if events and self._is_open("reasoning"):
            self._thought_tokens += self._undecided
        if events:
            self._undecided = 0
        return events

    def blank(self) -> Json:
        """Return an event that adds nothing."""
        return {"type": "response.in_progress", "response": self._response("in_progress")}

    def closing(self, finished: Finished) -> list[Json]:
        """Return what was held back, and the end with the whole response."""
        events = [event for part in self._parts.finish() for event in self._took(part)]
        events += self._closed()
        response = self._ended(finished)
        end = {"type": f"response.{response['status']}", "response": response}
        return [*events, {**end, "timings": timings_of(finished)}]

    def whole(self, deltas: list[Delta], finished: Finished) -> Json:
        """Return the response."""
        for delta in deltas:
            self.chunks(delta)
        self.closing(finished)
        return self._ended(finished)

    def _note(self, choices: list[Choice]) -> None:
        if self._with_logprobs:
            self._unplaced += [
                {**token_json(choice.token), "top_logprobs": [token_json(other) for other in choice.top]}
                for choice in choices
            ]

    def _took(self, part: Part) -> list[Json]:
        """Put `part` into the response; return the events that say so."""
        match part:
            case Said():
                return self._said(part.text)
            case Thought():
                return self._thought(part.text)
            case CallBegun():
                item = {"type": "function_call", "call_id": part.id, "name": part.name, "arguments": ""}
                return [*self._closed(), self._began_item("fc", item)]
            case Arguments():
                self._items[-1]["arguments"] += part.text
                place = self._place()
                return [{"type": "response.function_call_arguments.delta", **place, "delta": part.text}]

    def _said(self, text: str) -> list[Json]:
        events: list[Json] = []
        if not self._is_open("message"):
            item = {"type": "message", "role": "assistant", "content": []}
            events = [*self._closed(), self._began_item("msg", item)]
            self._items[-1]["content"] = [_text_part()]
            place = {**self._place(), "content_index": 0}
            events.append({"type": "response.content_part.added", **place, "part": _text_part()})
        logprobs, self._unplaced = self._unplaced, []
        (content,) = self._items[-1]["content"]
        content["text"] += text
        content["logprobs"] += logprobs
        place = {**self._place(), "content_index": 0}
        delta = {"type": "response.output_text.delta", **place, "delta": text, "logprobs": logprobs}
        return [*events, delta]

    def _thought(self, text: str) -> list[Json]:
        self._unplaced = []  # a thought has no place for them
        events: list[Json] = []
        if not self._is_open("reasoning"):
            item = {"type": "reasoning", "summary": [], "content": []}
            events = [*self._closed(), self._began_item("rs", item)]
            self._items[-1]["content"] = [{"type": "reasoning_text", "text": ""}]
        self._items[-1]["content"][0]["text"] += text
        place = {**self._place(), "content_index": 0}
        return [*events, {"type": "response.reasoning_text.delta", **place, "delta": text}]

    def _is_open(self, kind: str) -> bool:
        return self._open and self._items[-1]["type"] == kind

    def _began_item(self, prefix: str, item: Json) -> Json:
        item = {"id": f"{prefix}_{uuid.uuid4().hex}", "status": "in_progress", **item}
        self._items.append(item)
        self._open = True
        return self._item_event("added", dict(item))

    def _closed(self) -> list[Json]:
        """End the item that is open; return the events that say so."""
        if not self._open:
            return []
        self._open = False
        item, place = self._items[-1], self._place()
        item["status"] = "completed"
        done = self._item_event("done", item)
        if item["type"] == "function_call":
            said = {"name": item["name"], "arguments": item["arguments"]}
            return [{"type": "response.function_call_arguments.done", **place, **said}, done]
        place |= {"content_index": 0}
        (part,) = item["content"]
        if item["type"] == "reasoning":
            return [{"type": "response.reasoning_text.done", **place, "text": part["text"]}, done]
        text = {"text": part["text"], "logprobs": part["logprobs"]}
        return [
            {"type": "response.output_text.done", **place, **text},
            {"type": "response.content_part.done", **place, "part": part},
            done,
        ]

    def _item_event(self, what: str, item: Json) -> Json:
        number = len(self._items) - 1
        return {"type": f"response.output_item.{what}", "output_index": number, "item": item}

    def _place(self) -> Json:
        number = len(self._items) - 1
        return {"item_id": self._items[-1]["id"], "output_index": number}

    def _ended(self, finished: Finished) -> Json:
        usage = finished.usage
        counts = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._thought_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        if finished.reason == "length":
            why = {"reason": "max_output_tokens"}
            if self._items and self._items[-1]["type"] == "message":
                self._items[-1]["status"] = "incomplete"
            return self._response("incomplete", usage=counts, incomplete_details=why)
        return self._response("completed", usage=counts)

    def _response(self, status: str, **more: Json) -> Json:
        blank = {"error": None, "incomplete_details": None, "usage": None}
        return {**self._head, "status": status, "output": list(self._items), **blank, **more}


def _text_part() -> Json:
    return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
