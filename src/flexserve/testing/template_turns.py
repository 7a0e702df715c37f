"""What a chat template writes of an assistant's turns, as the answers that its model would give."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flexserve.protocol.notation import Notation
from flexserve.trusted.text.chat_template import FUNCTIONARY, HARMONY_START
from flexserve.trusted.text.rendering.jobs import Outcome
from flexserve.trusted.text.rendering.template import Template

SAID, THOUGHT = "Mild and dry.", "I have to look it up."
_USER = {"role": "user", "content": "What is it like in Rome?"}
_SEGMENT = re.compile(r"</?[^<>\s]{1,60}>|\[/?[A-Z_]{2,30}\]|.", re.DOTALL)
_IDS = (("abcdefgh1", "abcdefgh2"), ("functions.{}:0", "functions.{}:1"))


class Turns:
    """The turns of one template. What it refuses, or does not show, is None.

    A turn comes with the mark of a thought that the prompt before it ends with ("": none).
    """

    def __init__(self, source: str) -> None:
        self._template = Template(source)
        looked = self._template.result(None)
        self.notation = looked.notation or Notation()
        self.takes_tools = looked.takes_tools

    def answer(self) -> tuple[str, str] | None:
        """Return what it writes of `SAID`."""
        return self._turn({"content": SAID}, [SAID], ())

    def thought(self) -> tuple[str, str] | None:
        """Return what it writes of `THOUGHT` and `SAID`."""
        return self._turn({"content": SAID, **_thought()}, [THOUGHT, SAID], ())

    def calls(
        self, calls: Sequence[tuple[str, Mapping[str, Any]]], *, thought: bool = False
    ) -> tuple[str, str] | None:
        """Return what it writes of calls and nothing else, `thought`: but for `THOUGHT`."""
        shown = [*([THOUGHT] if thought else []), *(name for name, _ in calls)]
        shown += [str(text) for _, values in calls for text in list(values)]
        for ids in _IDS:
            for content, arguments in (("", dict), ("", _json), (None, dict), (None, _json)):
                turn: dict[str, Any] = {
                    "content": content,
                    "tool_calls": [
                        {"id": one.format(name), "type": "function",
                         "function": {"name": name, "arguments": arguments(values)}}
                        for one, (name, values) in zip(ids, calls, strict=False)
                    ],
                    **(_thought() if thought else {}),
                }  # fmt: skip
                if (written := self._turn(turn, shown, calls)) is not None:
                    return written
        return None

    # ---- inside --------------------------------------------------------------------------------

    def _turn(
        self, turn: Mapping[str, Any], shown: Sequence[str], calls: Sequence[tuple[str, Mapping[str, Any]]]
    ) -> tuple[str, str] | None:
        tools = [_tool(name, values) for name, values in calls]
        shared: dict[str, Any] = {"messages": [_USER], **({"tools": tools} if tools else {})}
        prompt = self._render({**shared, "add_generation_prompt": True})
        text = self._written(shared, turn)
        plain = self._written(shared, {"content": SAID})
        if prompt is None or text is None or plain is None:
            return None
        before = _common(prompt, text)
        body = text[len(before) :]
        # One template has instructions between the conversation and the turn that is to come.
        body = body[max(size for size in range(len(body) + 1) if prompt.endswith(body[:size])) :]
        tail = _common(plain.rpartition(SAID)[2], body, end=True)
        body = body[: len(body) - len(tail)]
        if not all(one in body for one in shown):
            return None
        opening, closing = self.notation.thought_open, self.notation.thought_close
        begun = self._begun(prompt)
        if begun == opening and THOUGHT not in body:  # the history leaves the thought out
            body = body if body.lstrip().startswith(closing) else closing + body.removeprefix(opening)
        elif begun != opening and opening and before.rstrip().endswith(opening):
            body = opening + body  # the prompt forgoes a thought
        return begun, body

    def _written(self, shared: Mapping[str, Any], turn: Mapping[str, Any]) -> str | None:
        messages = [*shared["messages"], {"role": "assistant", **turn}]
        return self._render({**shared, "messages": messages, "add_generation_prompt": False})

    def _begun(self, prompt: str) -> str:
        calls = self.notation.calls
        marks = [self.notation.thought_open, HARMONY_START if self.notation.harmony else ""]
        marks += [FUNCTIONARY] if calls is not None and calls.open == FUNCTIONARY else []
        return next((mark for mark in marks if mark and prompt.rstrip().endswith(mark.rstrip())), "")

    def _render(self, values: dict[str, Any]) -> str | None:
        result = self._template.result({"bos_token": "", "eos_token": "", **values})
        return result.text if result.outcome is Outcome.DONE else None


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values)


def _thought() -> dict[str, str]:
    return {"reasoning_content": THOUGHT, "thinking": THOUGHT}


def _tool(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    properties = {key: {"description": "one", **schema_of(value)} for key, value in values.items()}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": "a tool", "parameters": parameters}}


def schema_of(value: Any) -> dict[str, Any]:
    """Return a JSON schema that takes a value, and others of its kind."""
    match value:
        case bool():
            return {"type": "boolean"}
        case int():
            return {"type": "integer"}
        case float():
            return {"type": "number"}
        case str():
            return {"type": "string"}
        case list():
            return {"type": "array", "items": schema_of(value[0])}
    each = {key: schema_of(one) for key, one in value.items()}
    return {"type": "object", "properties": each, "additionalProperties": next(iter(each.values()))}


def _common(first: str, second: str, *, end: bool = False) -> str:
    """Return what two texts begin (or end) with alike, in whole marks."""
    step = -1 if end else 1
    one, other = _SEGMENT.findall(first)[::step], _SEGMENT.findall(second)[::step]
    count = next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    return "".join(one[: min(len(one), len(other)) if count is None else count][::step])
