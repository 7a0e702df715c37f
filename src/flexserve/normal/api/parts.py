"""What an answer is made of, told apart as it comes: text, thoughts, and calls of tools."""

from __future__ import annotations

import dataclasses
import uuid

from flexserve.protocol.call_scanner import CallScanner
from flexserve.protocol.calls import Call
from flexserve.protocol.messages import Started


@dataclasses.dataclass(frozen=True, slots=True)
class Said:
    """More of the text that the client asked for."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Thought:
    """More of what the model thinks before it answers."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class CallBegun:
    """The model calls tool `name`; `id` is unique in the conversation."""

    id: str
    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Arguments:
    """More of the arguments of the call that began last."""

    text: str


Part = Said | Thought | CallBegun | Arguments


class Parts:
    """The parts of one answer. `most_calls` are taken out of the text, and those beyond it dropped.

    `calls` are those taken so far.
    """

    def __init__(self, most_calls: int) -> None:
        self._scanner = CallScanner() if most_calls else None
        self._most_calls = most_calls
        self.calls = 0

    def began(self, started: Started) -> None:
        """Record how the answer begins: calls in a thought are none."""
        if self._scanner is not None:
            self._scanner = CallScanner(thinking=started.thinking)

    def feed(self, text: str) -> list[Part]:
        """Take `text` in; return what is decided."""
        if self._scanner is None:
            return [Said(text)] if text else []
        return self._kept(self._scanner.feed(text))

    def finish(self) -> list[Part]:
        """Return the rest; no more text comes."""
        return [] if self._scanner is None else self._kept(self._scanner.finish())

    def _kept(self, found: list[str | Call]) -> list[Part]:
        kept: list[Part] = []
        for part in found:
            if isinstance(part, str):
                kept += [Said(part)] if part else []
            elif self.calls < self._most_calls:
                self.calls += 1
                kept += [CallBegun(f"call_{uuid.uuid4().hex[:24]}", part.name), Arguments(part.arguments)]
        return kept
