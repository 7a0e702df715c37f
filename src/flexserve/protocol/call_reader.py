"""Reads calls of tools, in the notation of a model, from text that comes in pieces."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import string
from collections.abc import Callable, Mapping
from typing import Any

from flexserve.protocol.answer_parts import Arguments, CallBegun, Part
from flexserve.protocol.call_values import (
    JsonText,
    Named,
    braced,
    calls_in,
    may_nest,
    nested,
    one_call,
    python_calls,
    typed,
)
from flexserve.protocol.held_text import HeldText, Waiting
from flexserve.protocol.notation import ANY, CallNotation, Style

MAX_CALL = 1 << 18  # characters of a call, or of an argument, that is held; what is longer is text
_LETTERS = string.ascii_letters + string.digits
_ID_LENGTH = 9  # the one length that the templates of Mistral's models take
_NAME = re.compile(r"[a-zA-Z0-9_.\-]{1,64}")
_NUMBERED = re.compile(r"functions\.([a-zA-Z0-9_.\-]{1,64}):[0-9]{1,6}")  # an id that has the name in it
_NAME_KEYS = ("name", "tool_name")
_ARGUMENTS_KEYS = ("arguments", "parameters")
_ID_KEYS = ("id", "tool_call_id")

Tools = Mapping[str, Mapping[str, Any]]  # of each tool's arguments: their schemas


def new_id() -> str:
    """Return an id for a call that every template takes."""
    return "".join(secrets.choice(_LETTERS) for _ in range(_ID_LENGTH))


class CallReader:
    """Reads calls at the front of `held`, and gives `emit` their parts as they come.

    Nothing is taken from `held` before it is certain that it is a call.
    """

    def __init__(self, held: HeldText, tools: Tools, emit: Callable[[Part], None]) -> None:
        self._held, self._tools, self._emit = held, tools, emit

    def group(self, notation: CallNotation) -> Waiting[bool]:
        """Take the calls that begin the text, and the marks around them; False when there are none."""
        at = yield from self._optional(0, notation.begin)
        count = 0
        while (yield from self._one(notation, at)):
            count += 1
            at = yield from self._optional(0, notation.between)
        if count:
            self._held.take((yield from self._optional(0, notation.end)))
        return count > 0

    def begins(self, notation: CallNotation) -> Waiting[bool]:
        """Return whether the text begins with a call, in JSON, of a tool that is on offer."""
        at = yield from self._held.blank(0)
        if (yield from self._held.char(at)) == "[":
            at = yield from self._held.blank(at + 1)
        head = yield from self._head(notation, at)
        return head is not None and head[0] in self._tools

    def whole(self, notation: CallNotation) -> bool:
        """Take the calls that all of the text consists of; False when it holds anything else."""
        text = self._held.text
        calls = python_calls(text) if notation.style is Style.PYTHON else calls_in(text)
        if not calls or not all(_NAME.fullmatch(name) for name, _ in calls):
            return False
        self._held.take(len(text))
        for call in calls:
            self._emit_whole(call)
        return True

    # ---- one call ---------------------------------------------------------------------------------

    def _one(self, notation: CallNotation, at: int) -> Waiting[bool]:
        match notation.style:
            case Style.JSON:
                return (yield from self._json(notation, at))
            case Style.NAMED:
                return (yield from self._named(notation, at))
            case Style.TAGGED:
                return (yield from self._tagged(notation, at))
            case Style.PYTHON:
                return (yield from self._python(notation, at))
            case Style.BRACED:
                return (yield from self._braced(notation, at))

    def _json(self, notation: CallNotation, at: int) -> Waiting[bool]:
        if (opened := (yield from self._held.literal(at, notation.open))) is None:
            return False
        at = yield from self._held.blank(opened[0])
        listed = (yield from self._held.char(at)) == "["
        if listed:
            at = yield from self._held.blank(at + 1)
        count = 0
        while (yield from self._object(notation, at)):
            count += 1
            at = yield from self._held.blank(0)
            if not listed or (yield from self._held.char(at)) != ",":
                break
            at = yield from self._held.blank(at + 1)
        if not count:
            return False
        if listed:
            self._held.take((yield from self._optional(0, "]")))
        self._held.take((yield from self._optional(0, notation.close)))
        return True

    def _object(self, notation: CallNotation, at: int) -> Waiting[bool]:
        """Take the call that is the JSON object at `at`."""
        head = yield from self._head(notation, at)
        if head is None:
            return (yield from self._whole_object(notation, at))
        name, call, start = head
        yield from self._stream(name, call, start)
        yield from self._skip_object()
        return True

    def _head(self, notation: CallNotation, at: int) -> Waiting[tuple[str, str, int] | None]:
        """Return name, id and the place of the arguments, where they are written in the usual order."""
        held, name, call = self._held, "", ""
        if (yield from held.char(at)) != "{":
            return None
        at += 1
        while True:
            key = yield from held.string((yield from held.blank(at)))
            if key is None:
                return None
            at = yield from held.blank(key[1])
            if (yield from held.char(at)) != ":":
                return None
            at = yield from held.blank(at + 1)
            keyed = not notation.name_key
            if keyed or key[0] in (notation.arguments_key, *_ARGUMENTS_KEYS):
                name = key[0] if keyed else name
                fits = _NAME.fullmatch(name) and (yield from self._is_object(at))
                return (name, call, at) if fits else None
            value = yield from held.string(at)
            if value is None:
                return None
            if key[0] in (notation.name_key, *_NAME_KEYS):
                name = value[0]
            elif key[0] in _ID_KEYS and len(value[0]) == _ID_LENGTH and value[0].isalnum():
                call = value[0]
            at = yield from held.blank(value[1])
            if (yield from held.char(at)) != ",":
                return None
            at += 1

    def _whole_object(self, notation: CallNotation, at: int) -> Waiting[bool]:
        """Take the call at `at` when all of it is there: its keys are in another order, or say more."""
        if (yield from self._held.char(at)) != "{" or not notation.name_key:
            return False
        scan, end = JsonText(), at
        while not scan.ended and end - at <= MAX_CALL:
            end += scan.feed(self._held.text[end:])[1]
            if self._held.final:
                break
            if not scan.ended:
                yield
        found = one_call(self._held.text[at:end]) if scan.ended else None
        if found is None or not _NAME.fullmatch(found[0]):
            return False
        self._held.take(end)
        self._emit_whole(found)
        return True

    def _named(self, notation: CallNotation, at: int) -> Waiting[bool]:
        found = yield from self._name(notation, at)
        if found is None or not (yield from self._is_object(found[2])):
            return False
        yield from self._stream(*found)
        self._held.take((yield from self._optional(0, notation.close)))
        return True

    def _tagged(self, notation: CallNotation, at: int) -> Waiting[bool]:
        found = yield from self._name(notation, at)
        if found is None:
            return False
        name, call, at = found
        held = self._held
        more = yield from held.literal(at, notation.key_open)
        if more is None and (yield from held.literal(at, notation.close)) is None:
            return False
        held.take(at)
        self._emit(CallBegun(call or new_id(), name))
        lead = "{"
        while (key := (yield from self._key(notation))) is not None:
            value = yield from self._value(notation, name, *key)
            self._emit(Arguments(f"{lead}{json.dumps(key[0], ensure_ascii=False)}: {value}"))
            lead = ", "
        self._emit(Arguments("{}" if lead == "{" else "}"))
        held.take((yield from self._optional(0, notation.close)))
        return True

    def _key(self, notation: CallNotation) -> Waiting[tuple[str, list[str]] | None]:
        """Take the name of an argument with its marks; return it and the words in them."""
        marks = (notation.key_open, notation.key_close, notation.value_close)
        opened = yield from self._held.literal(0, notation.key_open)
        if opened is None or not all(mark.strip() for mark in marks):
            return None
        end = yield from self._held.find(_first(notation.key_close), opened[0], 256)
        if end < 0:
            return None
        closed = yield from self._held.literal(end, notation.key_close)
        if closed is None:
            return None
        key = self._held.text[opened[0] : end].strip()
        if key.startswith("/"):
            return None  # the mark that closes the call begins like one that opens an argument
        self._held.take(closed[0])
        return key, closed[1]

    def _value(self, notation: CallNotation, name: str, key: str, words: list[str]) -> Waiting[str]:
        """Take an argument's value with the mark behind it; return it as JSON."""
        held, schema = self._held, self._tools.get(name, {}).get(key)
        marks = notation.key_open.strip(), notation.key_close, notation.value_close.strip()
        mark = marks[2].replace(ANY, key)
        end = yield from held.find(mark, 0, MAX_CALL)
        tags = ANY in marks[2] and may_nest(schema) and held.text.lstrip().startswith(marks[0])
        depth, at = held.text.count(marks[0] + key + marks[1], 0, max(end, 0)), 0
        while tags and depth and end >= 0:  # an argument in it has the same name
            at = end + len(mark)
            end = yield from held.find(mark, at, MAX_CALL)
            depth += held.text.count(marks[0] + key + marks[1], at, max(end, at)) - 1
        text = held.take(end if end >= 0 else len(held.text))
        held.take(len(mark) if end >= 0 else 0)
        if tags:
            with contextlib.suppress(ValueError):
                return json.dumps(nested(text, marks, schema), ensure_ascii=False)
        # A line feed on either side is the notation's, where it has one.
        if notation.key_close.endswith("\n"):
            text = text.removeprefix("\n")
        if notation.value_close.startswith("\n"):
            text = text.removesuffix("\n")
        string = words[0] in ("true", "string") if words else None
        return typed(text, schema, string=string)

    def _python(self, notation: CallNotation, at: int) -> Waiting[bool]:
        return (yield from self._up_to_close(notation, at, python_calls))

    def _braced(self, notation: CallNotation, at: int) -> Waiting[bool]:
        def call(text: str) -> list[Named]:
            name, _, rest = text.partition("{")
            arguments = braced("{" + rest, notation.quote)
            return [(name.strip(), arguments)] if arguments is not None else []

        return (yield from self._up_to_close(notation, at, call))

    def _up_to_close(
        self, notation: CallNotation, at: int, read: Callable[[str], list[Named]]
    ) -> Waiting[bool]:
        """Take what `read` makes of the text between `open` and `close`."""
        if (opened := (yield from self._held.literal(at, notation.open))) is None:
            return False
        mark = notation.close.strip()
        end = yield from self._held.find(mark, opened[0], MAX_CALL)
        calls = read(self._held.text[opened[0] : end if end >= 0 else len(self._held.text)])
        if not calls or not all(_NAME.fullmatch(name) for name, _ in calls):
            return False
        self._held.take(end + len(mark) if end >= 0 else len(self._held.text))
        for one in calls:
            self._emit_whole(one)
        return True

    # ---- parts of calls ---------------------------------------------------------------------------

    def _name(self, notation: CallNotation, at: int) -> Waiting[tuple[str, str, int] | None]:
        """Return the name behind `open`, the call's id ("": none), and where `middle` ends."""
        if (opened := (yield from self._held.literal(at, notation.open))) is None:
            return None
        at = yield from self._held.blank(opened[0])
        written = yield from self._held.word(at)
        middle = yield from self._held.literal(at + len(written), notation.middle)
        if middle is None:
            return None
        ids = [word for word in (*opened[1], *middle[1]) if word]
        if (numbered := _NUMBERED.fullmatch(written)) is not None:
            return numbered[1], written, middle[0]
        return (written, ids[0] if ids else "", middle[0]) if _NAME.fullmatch(written) else None

    def _is_object(self, at: int) -> Waiting[bool]:
        """Return whether a JSON object begins at `at`."""
        at = yield from self._held.blank(at)
        if (yield from self._held.char(at)) != "{":
            return False
        return (yield from self._held.char((yield from self._held.blank(at + 1)))) in ('"', "}")

    def _stream(self, name: str, call: str, at: int) -> Waiting[None]:
        """Take everything up to the end of the JSON object behind `at`, and emit it as a call."""
        held, scan = self._held, JsonText()
        held.take((yield from held.blank(at)))
        self._emit(CallBegun(call or new_id(), name))
        while True:
            written, used = scan.feed(held.text)
            held.take(used)
            if written:
                self._emit(Arguments(written))
            if scan.ended or held.final:
                return
            yield

    def _skip_object(self) -> Waiting[None]:
        """Take the rest of the object in which the arguments were."""
        at = yield from self._held.blank(0)
        if (yield from self._held.char(at)) not in (",", "}"):
            return  # it was never closed
        scan = JsonText(depth=1)
        while True:
            self._held.take(scan.feed(self._held.text)[1])
            if scan.ended or self._held.final:
                return
            yield

    def _optional(self, at: int, mark: str) -> Waiting[int]:
        """Return where `mark` ends if it is at `at`, else `at`.

        The text may end in it: the last of a mark is often a token that ends the answer.
        """
        if not mark.strip():
            return at
        found = yield from self._held.literal(at, mark, cut=True)
        return at if found is None else found[0]

    def _emit_whole(self, call: Named) -> None:
        self._emit(CallBegun(new_id(), call[0]))
        self._emit(Arguments(call[1]))


def _first(mark: str) -> str:
    """Return the beginning of `mark` by which it is found."""
    return mark.split(maxsplit=1)[0].split(ANY, maxsplit=1)[0] if mark.strip() else ">"
