"""The forms in which models write calls of tools, and grammars that make them write one.

Two forms are known, because most templates teach one of them:

    tagged   <tool_call>{"name": …, "arguments": {…}}</tool_call>     Hermes, Qwen
    bare     {"name": …, "parameters": {…}}, and nothing else         Llama 3

A template is the source text of a chat template.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Mapping, Sequence
from typing import Any

from flexserve.protocol.schema import prepared

OPENING, CLOSING = "<tool_call>", "</tool_call>"


class CallForm(enum.Enum):
    """How a model writes a call."""

    TAGGED = "tagged"
    BARE = "bare"


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """A call that the model made: `arguments` is a JSON object as text."""

    name: str
    arguments: str


def form_of(template: str) -> CallForm | None:
    """Return the form of calls that `template` teaches, None if it is another one or none."""
    if OPENING in template:
        return None if "<function=" in template else CallForm.TAGGED
    return CallForm.BARE if '"name"' in template and '"parameters"' in template else None


def call_rules(form: CallForm, tools: Sequence[Mapping[str, Any]]) -> str:
    """Return rules of llguidance's grammars: `call` is one call of one of `tools` (OpenAI's tool objects).

    Of the tools' schemas, what cannot be enforced is ignored: they say how to call, not what is safe.
    Raises CallerError for parameters that are no schema.
    """
    key = "arguments" if form is CallForm.TAGGED else "parameters"
    rules, names = [], []
    for number, tool in enumerate(tools):
        function = tool["function"]
        schema = prepared(function.get("parameters") or {"type": "object"}, lenient=True)
        schema.setdefault("type", "object")
        opening = f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "{key}": '
        rules.append(f'call{number}: {quoted(opening)} %json {json.dumps(schema)} "}}"')
        names.append(f"call{number}")
    body = f"({' | '.join(names)})"
    if form is CallForm.TAGGED:
        body = f"{quoted(OPENING + chr(10))} {body} {quoted(chr(10) + CLOSING)}"
    return "\n".join([f"call: {body}", *rules])


def quoted(text: str) -> str:
    """Return the expression for exactly this text in llguidance's grammars."""
    return json.dumps(text, ensure_ascii=False)
