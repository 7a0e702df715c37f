"""What an answer is made of, told apart as it comes: text, thoughts, and calls of tools."""

from __future__ import annotations

from flexserve.protocol.answer_parts import Arguments, CallBegun, Part, Said, Thought
from flexserve.protocol.answer_reader import AnswerReader
from flexserve.protocol.answers import Started
from flexserve.protocol.call_reader import Tools

__all__ = ["Arguments", "CallBegun", "Part", "Parts", "Said", "Thought"]


class Parts:
    """The parts of one answer. `most_calls` are taken out of the text, and those beyond it dropped.

    `tools`: the schemas of each tool's arguments. `raw`: thoughts stay in the text, with their marks. `calls`
    are those taken so far.
    """

    def __init__(self, most_calls: int, tools: Tools | None = None, *, raw: bool = False) -> None:
        self._reader: AnswerReader | None = None
        self._most_calls, self._tools, self._raw = most_calls, tools or {}, raw
        self._thinks = False
        self._marks = "", ""
        self._begun = 0  # calls, those that are dropped among them
        self.calls = 0

    def began(self, started: Started) -> None:
        """Record how the answer is written."""
        if started.notation is not None:
            self._marks = started.notation.thought_open, started.notation.thought_close
            tools = self._tools if self._most_calls else None
            self._reader = AnswerReader(started.notation, started.begun, tools)

    def feed(self, text: str) -> list[Part]:
        """Take `text` in; return what is decided."""
        if self._reader is None:
            return [Said(text)] if text else []
        return self._kept(self._reader.feed(text))

    def finish(self) -> list[Part]:
        """Return the rest; no more text comes."""
        return [] if self._reader is None else self._kept(self._reader.finish())

    def _kept(self, found: list[Part]) -> list[Part]:
        kept: list[Part] = []
        for part in found:
            if isinstance(part, CallBegun):
                self._begun += 1
                self.calls = min(self._begun, self._most_calls)
            if not isinstance(part, CallBegun | Arguments) or self._begun <= self._most_calls:
                kept += self._marked(part) if self._raw else [part]
        return kept

    def _marked(self, part: Part) -> list[Part]:
        """Return `part` as text with the marks of thoughts, if it is one or comes behind one."""
        if isinstance(part, Thought):
            lead = "" if self._thinks else f"{self._marks[0]}\n"
            self._thinks = True
            return [Said(lead + part.text)]
        behind = [Said(f"\n{self._marks[1]}\n\n")] * self._thinks
        self._thinks = False
        return [*behind, part]
