"""Tells the parts of an answer apart in the text that a model writes: thoughts, what it says, calls.

The text comes in pieces; the parts are the same however it was cut. What may still become a mark is held
back; what turns out to be none comes out as text. White space around thoughts and calls is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from flexserve.protocol.answer_parts import Arguments, CallBegun, Part, Said, Thought, joined
from flexserve.protocol.call_reader import CallReader, Tools, new_id
from flexserve.protocol.held_text import HeldText, Waiting, overlap
from flexserve.protocol.notation import ANY, BARE, HARMONY_MARKS, HERMES, CallNotation, Notation, Style

MAX_FAILURES = 64  # marks with no call behind them; after so many the rest of an answer is text
MAX_BARE = 1 << 18  # characters of an answer that may be a call as a whole
_BARE_STARTS = ('{"name"', '{"type"', '{"function"', '[{"name"')
_PYTHON_START = re.compile(r"\[\s*(?:[A-Za-z_][\w.]{0,63}\s*(?:\(|$)|$)")
_TO = re.compile(r"to=(?:functions\.)?([a-zA-Z0-9_.\-]{1,64})")
_MOST_HEADER = 512  # characters of a header of harmony


class AnswerReader:
    """Reads one answer. `begun` is what of it the prompt has already, as the mark of a thought.

    `tools`: those on offer, each with the schemas of its arguments; None: nothing is a call.
    """

    def __init__(self, notation: Notation, begun: str = "", tools: Tools | None = None) -> None:
        self._notation, self._tools = notation, tools
        self._held = HeldText()
        self._found: list[Part] = []
        self._calls = CallReader(self._held, tools or {}, self._found.append)
        self._steps = self._harmony() if notation.harmony else self._answer()
        self.feed(begun)

    def feed(self, text: str) -> list[Part]:
        """Take `text` in; return what is decided."""
        self._held.add(text)
        return self._run()

    def finish(self) -> list[Part]:
        """Return the rest; no more text comes. A call whose end is missing counts."""
        self._held.final = True
        return self._run()

    def _run(self) -> list[Part]:
        next(self._steps, None)
        found = joined(self._found)
        self._found.clear()
        return found

    def _emit(self, part: Said | Thought | Arguments) -> None:
        if part.text:
            self._found.append(part)

    # ---- thoughts, then text with calls in it ------------------------------------------------------

    def _answer(self) -> Waiting[None]:
        thought = False
        closing = self._notation.thought_close
        if closing and (found := (yield from self._held.literal(0, closing))) is not None:
            self._held.take(found[0])  # the end of a thought that was none
            thought = True
        while (yield from self._thought()):
            thought = True
        if thought:
            self._held.take((yield from self._held.blank(0)))
        notations = self._notations()
        if any(notation.bare for notation in notations) and (yield from self._bare(notations)):
            return
        yield from self._text(_triggers(notations))

    def _notations(self) -> list[CallNotation]:
        """Return the notations of calls that count: the model's own, and the two that most models know."""
        if self._tools is None:
            return []
        own = self._notation.calls
        return [HERMES, BARE] if own is None else [own, HERMES, *([BARE] if own.bare else [])]

    def _thought(self) -> Waiting[bool]:
        """Take a thought at the front; False when there is none."""
        opening, closing = self._notation.thought_open, self._notation.thought_close
        found = yield from self._held.literal(0, opening)
        if found is None or not opening:
            return False
        self._held.take(found[0])
        self._held.take((yield from self._held.blank(0)))
        if (again := (yield from self._held.literal(0, opening))) is not None:
            self._held.take((yield from self._held.blank(again[0])))
        yield from self._up_to(closing.strip(), Thought)
        return True

    def _up_to(self, mark: str, kind: type[Said | Thought]) -> Waiting[None]:
        """Take what is before `mark`, and the mark; emit it without the white space at its end."""
        held = self._held
        while (at := held.text.find(mark)) < 0 and not held.final:
            keep = overlap(held.text, mark)
            self._emit(kind(held.take(len(held.text[: len(held.text) - keep].rstrip()))))
            yield
        self._emit(kind(held.take(at if at >= 0 else len(held.text)).rstrip()))
        held.take(len(mark) if at >= 0 else 0)

    def _bare(self, notations: Sequence[CallNotation]) -> Waiting[bool]:
        """Take an answer that is nothing but calls; False when it is, or may be, something else.

        One that begins by calling a tool on offer is a call: what follows it is not waited for.
        """
        bare = next(notation for notation in notations if notation.bare)
        if bare.style is Style.JSON and (yield from self._calls.begins(bare)):
            yield from self._calls.group(bare)
            self._held.take((yield from self._held.blank(0)))
            return False
        while not self._held.final:
            if not _may_be_bare(self._held.text, bare.style) or len(self._held.text) > MAX_BARE:
                return False
            yield
        return _may_be_bare(self._held.text, bare.style) and self._calls.whole(bare)

    def _text(self, triggers: dict[str, list[CallNotation]]) -> Waiting[None]:
        """Take the rest: text, and calls behind `triggers`."""
        held, dropped = self._held, [mark.strip() for mark in self._notation.dropped if mark.strip()]
        marks = sorted([*triggers, *dropped], key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, marks)) or "(?!)")
        failures = 0
        while marks and failures < MAX_FAILURES:
            found = pattern.search(held.text)
            if found is None or (not held.final and _may_grow(held.text, found, marks)):
                if held.final:
                    break
                keep = max((overlap(held.text, mark) for mark in marks), default=0)
                at = len(held.text) - keep if found is None else found.start()
                self._emit(Said(held.take(len(held.text[:at].rstrip()))))
                yield
                continue
            self._emit(Said(held.take(len(held.text[: found.start()].rstrip()))))
            if (mark := found.group()) in dropped:
                held.take(held.text.index(mark) + len(mark))
                held.take((yield from held.blank(0)))
                continue
            called = False
            for notation in triggers[mark]:
                called = called or (yield from self._calls.group(notation))
            if called:
                held.take((yield from held.blank(0)))
            else:
                failures += 1
                self._emit(Said(held.take(held.text.index(mark) + len(mark))))
        while held.text or not held.final:
            self._emit(Said(held.take(len(held.text))))
            yield

    # ---- harmony -----------------------------------------------------------------------------------

    def _harmony(self) -> Waiting[None]:
        """Take messages: each a header, then a body up to a mark. Text without a header is said."""
        held = self._held
        while (at := (yield from held.blank(0))) < len(held.text):
            yield from held.char(at + 1)
            end = -1
            if held.text.startswith("<|", at):
                end = yield from held.find("<|message|>", at, _MOST_HEADER)
            header = held.take(end + len("<|message|>")) if end >= 0 else ""
            yield from self._message(header)

    def _message(self, header: str) -> Waiting[None]:
        """Take the body of a message, and the mark behind it if no header begins with that."""
        kind: type[Said | Thought | Arguments] = Thought if "analysis" in header else Said
        if self._tools is not None and (to := _TO.search(header)) is not None:
            self._found.append(CallBegun(new_id(), to[1]))
            kind = Arguments
        held, size = self._held, 0
        while (found := _HARMONY.search(held.text)) is None:
            keep = max(overlap(held.text, mark) for mark in HARMONY_MARKS)
            at = len(held.text) - (0 if held.final else keep)
            size += self._take(len(held.text[:at].rstrip()), kind)
            if held.final:
                held.take(len(held.text))
                break
            yield
        else:
            size += self._take(len(held.text[: found.start()].rstrip()), kind)
            held.take(len(held.text) - len(held.text.lstrip()))
            if found.group() not in ("<|start|>", "<|channel|>") or not (header or size):
                held.take(len(found.group()))
        if kind is Arguments and not size:
            self._emit(Arguments("{}"))

    def _take(self, length: int, kind: type[Said | Thought | Arguments]) -> int:
        """Emit `length` characters, and return that."""
        self._emit(kind(self._held.take(length)))
        return length


_HARMONY = re.compile("|".join(map(re.escape, HARMONY_MARKS)))


def _triggers(notations: Sequence[CallNotation]) -> dict[str, list[CallNotation]]:
    """Return each mark by which a call may begin, with the notations that it may be in."""
    by_mark: dict[str, list[CallNotation]] = {}
    for notation in notations:
        for part in (notation.begin, notation.open):
            mark = part.split()[0].split(ANY)[0] if part.strip() else ""
            if mark:
                known = by_mark.setdefault(mark, [])
                known += [notation] if notation not in known else []
    return by_mark


def _may_grow(text: str, found: re.Match[str], marks: Sequence[str]) -> bool:
    """Return whether what was found may be the beginning of a longer mark."""
    rest = text[found.start() :]
    return any(mark != rest and mark.startswith(rest) for mark in marks)


def _may_be_bare(text: str, style: Style) -> bool:
    start = "".join(text[:256].split())
    if style is Style.PYTHON:
        return not start or _PYTHON_START.match(start) is not None
    return any(start.startswith(one) or one.startswith(start) for one in _BARE_STARTS)
