"""Tells the calls of tools apart from the text of an answer that comes piece by piece."""

from __future__ import annotations

import json
import re
from typing import Any

from flexserve.protocol.calls import CLOSING, OPENING, Call

MAX_CALL = 1 << 18  # characters of a call; what is longer is text
MAX_FAILURES = 64  # tags with no call behind them; after so many the rest of an answer is text
_THOUGHT, _THOUGHT_END = "<think>", "</think>"
_TAG = re.compile(f"{OPENING}|{_THOUGHT}")
_BARE_STARTS = ('{"name"', '{"type"', '{"function"')


class CallScanner:
    """Separates calls from text. `thinking`: the answer begins inside of a thought.

    Nothing that may still become a call is let out as text; what turns out not to be one comes out
    unchanged, and so does everything between <think> and </think>. White space around calls is dropped.
    """

    def __init__(self, *, thinking: bool = False) -> None:
        self._held = ""
        self._thinking = thinking
        self._begun = False  # something was said: a bare call can no longer begin
        self._after_call = False
        self._failures = 0

    def feed(self, text: str) -> list[str | Call]:
        """Take `text` in; return what is decided: pieces of text and calls, in order."""
        self._held += text
        return self._decided(final=False)

    def finish(self) -> list[str | Call]:
        """Return the rest; no more text comes. A call whose end tag is missing counts."""
        return self._decided(final=True)

    def _decided(self, *, final: bool) -> list[str | Call]:
        found: list[str | Call] = []
        while self._held and (more := self._next(final=final)):
            found += more
        return found

    def _next(self, *, final: bool) -> list[str | Call]:
        """Return what comes next; nothing while that is undecided."""
        if self._thinking:
            return self._thought(final=final)
        if self._after_call:
            self._held = self._held.lstrip()
        if not self._begun and _may_be_bare(self._held) and len(self._held) <= MAX_CALL:
            return self._bare() if final else []
        blank = len(self._held) - len(self._held.lstrip())
        if self._held.startswith(OPENING, blank) and self._failures < MAX_FAILURES:
            return self._tagged(blank + len(OPENING), final=final)
        return self._text(final=final)

    def _bare(self) -> list[str | Call]:
        """Take all that is held: the calls in it, or else the text that it is."""
        whole, self._held, self._begun = self._held, "", True
        return [*_bare_calls(whole)] or [whole]

    def _tagged(self, start: int, *, final: bool) -> list[str | Call]:
        """Take the call whose body begins at `start`; if there is none, the tag before it as text."""
        body = self._held[start : start + 256].lstrip()
        end = _end_of_call(self._held, start)
        if body and body[0] != "{":
            return self._let_out(start)
        if end < 0 and not final and len(self._held) <= MAX_CALL:
            return []
        whole = self._held[start : end if end >= 0 else len(self._held)]
        call = _parsed(whole.removesuffix(CLOSING))
        if call is None:
            self._failures += 1
            return self._let_out(start)
        self._held = self._held[start + len(whole) :]
        self._begun = self._after_call = True
        return [call]

    def _thought(self, *, final: bool) -> list[str | Call]:
        """Take what there is of a thought, with its end tag."""
        end = self._held.find(_THOUGHT_END)
        if end >= 0:
            self._thinking = False
            return self._let_out(end + len(_THOUGHT_END), said=False)
        held = 0 if final else _overlap(self._held, _THOUGHT_END)
        return self._let_out(len(self._held) - held, said=False)

    def _text(self, *, final: bool) -> list[str | Call]:
        """Take the text before what may become a call; blank text waits for what it precedes."""
        tag = _TAG.search(self._held) if self._failures < MAX_FAILURES else None
        if tag is not None and tag.group() == _THOUGHT:
            self._thinking = True
            return self._let_out(tag.end(), said=bool(self._held[: tag.start()].strip()))
        if tag is None and final:
            return self._let_out(len(self._held))
        overlap = max(_overlap(self._held, OPENING), _overlap(self._held, _THOUGHT))
        at = len(self._held) - overlap if tag is None else tag.start()
        return self._let_out(len(self._held[:at].rstrip()))

    def _let_out(self, length: int, *, said: bool = True) -> list[str | Call]:
        """Take `length` characters as text; those of a thought are not `said`."""
        text, self._held = self._held[:length], self._held[length:]
        if text:
            self._begun, self._after_call = self._begun or said, False
        return [text] if text else []


def _may_be_bare(text: str) -> bool:
    start = "".join(text[:256].split())
    return any(start.startswith(one) or one.startswith(start) for one in _BARE_STARTS)


def _overlap(text: str, tag: str) -> int:
    """Return the length of the longest end of `text` that begins `tag`."""
    return next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)


def _end_of_call(text: str, start: int) -> int:
    """Return where the call whose body begins at `start` ends, its end tag included; -1: not yet.

    An end tag inside of a string of the call's JSON is none.
    """
    quoted, at = False, start
    while (end := text.find(CLOSING, at)) >= 0:
        quotes = text[at:end].replace("\\\\", "").replace('\\"', "").count('"')
        quoted, at = quoted ^ bool(quotes % 2), end + len(CLOSING)
        if not quoted:
            return at
    return -1


def _parsed(text: str) -> Call | None:
    """Return the call that stands between tags. Models forget to escape line feeds; no arguments are none."""
    try:
        return _call(json.loads(text, strict=False), absent={})
    except (ValueError, RecursionError):
        return None


def _bare_calls(text: str) -> list[Call]:
    """Return the calls that `text` consists of, one after the other; none when it holds anything else."""
    decoder, calls, at = json.JSONDecoder(strict=False), [], 0
    text = text.strip()
    try:
        while at < len(text):
            value, at = decoder.raw_decode(text, at)
            call = _call(value, absent=None)  # an answer in JSON may well have a name, too
            if call is None:
                return []
            calls.append(call)
            while at < len(text) and text[at] in "; \n\t":
                at += 1
    except (ValueError, RecursionError):
        return []
    return calls


def _call(value: Any, *, absent: dict[str, Any] | None) -> Call | None:
    """Return the call that a JSON value stands for, None if it is none. `absent`: arguments not given."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", absent))
    if isinstance(arguments, str):  # JSON in JSON, as OpenAI's API has it
        arguments = json.loads(arguments, strict=False) if arguments.strip() else {}
    if arguments is None and absent is not None:
        arguments = absent
    if not isinstance(arguments, dict):
        return None
    return Call(value["name"], json.dumps(arguments, ensure_ascii=False))
