"""Calls of tools in what a model writes, and grammars that make it write one.

Two forms are known, because most templates teach one of them:

    tagged   <tool_call>{"name": …, "arguments": {…}}</tool_call>     Hermes, Qwen
    bare     {"name": …, "parameters": {…}}, and nothing else         Llama 3

A template is the source text of a chat template.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flexserve.core.schema import prepared

OPENING, CLOSING = "<tool_call>", "</tool_call>"
MAX_CALL = 1 << 18  # characters of a call; what is longer is text
_BARE_STARTS = ('{"name"', '{"type"', '{"function"')


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


class CallScanner:
    """Separates calls from text in an answer that comes piece by piece.

    Nothing that may still become a call is let out as text; what turns out not to be one comes out
    unchanged. White space around calls is dropped.
    """

    def __init__(self) -> None:
        self._held = ""
        self._begun = False  # something was decided: a bare call can no longer begin
        self._after_call = False

    def feed(self, text: str) -> list[str | Call]:
        """Take `text` in; return what is decided: pieces of text and calls, in order."""
        self._held += text
        return list(self._decided(final=False))

    def finish(self) -> list[str | Call]:
        """Return the rest; no more text comes. A call whose end tag is missing counts."""
        return list(self._decided(final=True))

    def _decided(self, *, final: bool) -> Iterator[str | Call]:
        while self._held:
            if self._after_call:
                self._held = self._held.lstrip()
            if not self._begun and _may_be_bare(self._held) and len(self._held) <= MAX_CALL:
                if not final:
                    return
                yield from self._bare()
            elif self._held.startswith(OPENING):
                end = self._held.find(CLOSING)
                if end < 0 and not final and len(self._held) <= MAX_CALL:
                    return
                yield self._tagged(len(self._held) if end < 0 else end + len(CLOSING))
            elif text := self._text(final=final):
                yield text
            else:
                return

    def _bare(self) -> list[str | Call]:
        """Take all that is held: the calls in it, or else the text that it is."""
        whole, self._held, self._begun = self._held, "", True
        return [*_bare_calls(whole)] or [whole]

    def _tagged(self, length: int) -> str | Call:
        """Take `length` characters that begin with the tag: the call in it, or else the text that it is."""
        whole, self._held = self._held[:length], self._held[length:]
        call = _parsed(whole.removeprefix(OPENING).removesuffix(CLOSING))
        self._begun, self._after_call = True, call is not None
        return call or whole

    def _text(self, *, final: bool) -> str:
        """Take the text before what may become a call; blank text waits for what it precedes."""
        at = self._held.find(OPENING)
        if at < 0 and final:
            text, self._held = self._held, ""
        else:
            at = at if at >= 0 else len(self._held) - _overlap(self._held)
            text = self._held[:at].rstrip()
            called = self._held[at:].startswith(OPENING)
            self._held = self._held[at if called else len(text) :]
        if text:
            self._begun, self._after_call = True, False
        return text


def _may_be_bare(text: str) -> bool:
    start = "".join(text[:256].split())
    return any(start.startswith(one) or one.startswith(start) for one in _BARE_STARTS)


def _overlap(text: str) -> int:
    """Return the length of the longest end of `text` that begins the opening tag."""
    return next((n for n in range(len(OPENING) - 1, 0, -1) if text.endswith(OPENING[:n])), 0)


def _parsed(text: str) -> Call | None:
    try:
        return _call(json.loads(text))
    except (ValueError, RecursionError):
        return None


def _bare_calls(text: str) -> list[Call]:
    """Return the calls that `text` consists of, one after the other; none when it holds anything else."""
    decoder, calls, at = json.JSONDecoder(), [], 0
    text = text.strip()
    try:
        while at < len(text):
            value, at = decoder.raw_decode(text, at)
            call = _call(value)
            if call is None:
                return []
            calls.append(call)
            while at < len(text) and text[at] in "; \n\t":
                at += 1
    except (ValueError, RecursionError):
        return []
    return calls


def _call(value: Any) -> Call | None:
    """Return the call that a JSON value stands for, None if it is none."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if not isinstance(arguments, dict):
        return None
    return Call(value["name"], json.dumps(arguments, ensure_ascii=False))
