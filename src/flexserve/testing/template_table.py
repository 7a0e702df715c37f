"""What works with each chat template: the table docs/templates.md.

    python -m flexserve.testing.template_table FOLDER docs/templates.md

FOLDER has templates, as `models/templates` in llama.cpp's sources. What a template writes of an assistant's
turn stands for an answer of its model: it is read whole, and in single characters.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from flexserve.protocol.answer_parts import Arguments, CallBegun, Part, Said, Thought, joined
from flexserve.protocol.answer_reader import AnswerReader
from flexserve.protocol.notation import HERMES, Notation
from flexserve.testing.template_turns import SAID, THOUGHT, Turns, schema_of
from flexserve.trusted.text.call_rules import call_rules
from flexserve.trusted.text.constraint import OPTIONS
from flexserve.trusted.text.rendering.compiling import LIMITS

WORKS, NONE = "yes", "–"  # NONE: the template does not write it
Call = tuple[str, dict[str, Any]]
CALLS: list[Call] = [
    ("get_weather", {"city": 'Rome, "Lazio"', "days": 3, "where": {"lat": 41.9}}),
    ("list_files", {"folder": "notes", "hidden": True, "kinds": ["txt", "md"]}),
]
_BYTES = LLTokenizer("byte")
_MOST = 2000  # bytes of a call that is forced
_HEAD = f"""# Chat templates

What works with each chat template that ships with the pinned llama.cpp, as `make test-real`
finds it. Written by `python -m flexserve.testing.template_table FOLDER docs/templates.md`.

What a template writes of an assistant's turn stands for an answer of its model. The reader of answers knows
what [was read off](decisions/0022-notations-are-read-off-templates.md) the template. It gets the turn whole
and in single characters, and has to find the same answer, thought and calls both times. Arguments are texts,
numbers, lists and objects. *Forced*: the grammar of a forced call gives exactly one call, which is read back.
*{NONE}*: the template writes no such thing. A template that knows no tools has them told in words (*told*).

| Template | Style of calls | Answer | Thought | One call | Two calls | Call after a thought | Forced |
|---|---|---|---|---|---|---|---|
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """What works with a template: `WORKS`, `NONE`, or what is wrong, in words."""

    name: str
    style: str
    answer: str
    thought: str
    one: str
    two: str
    after_thought: str
    forced: str

    @property
    def failures(self) -> list[str]:
        """What is wrong, by column."""
        found = dataclasses.asdict(self)
        return [
            f"{key}: {value}"
            for key, value in found.items()
            if key not in ("name", "style") and value not in (WORKS, NONE)
        ]


@dataclasses.dataclass(frozen=True, slots=True)
class Read:
    """What was read of an answer."""

    said: str
    thought: str
    calls: list[Call]


def table(folder: Path) -> str:
    """Return the document for the templates in `folder`."""
    rows = [row_of(path) for path in templates_in(folder)]
    return _HEAD + "".join(f"| {' | '.join(dataclasses.astuple(row))} |\n" for row in rows)


def templates_in(folder: Path) -> list[Path]:
    """Return the files of templates in their order."""
    return sorted(folder.glob("*.jinja"), key=lambda path: path.name.lower())


def row_of(path: Path) -> Row:
    """Return what works with the template in a file."""
    turns = Turns(path.read_text())
    notation, calls = turns.notation, turns.notation.calls
    style = "harmony" if notation.harmony else "told" if not turns.takes_tools else "other"
    if calls is not None and turns.takes_tools:
        style = calls.style.value + (", without marks" if calls.bare else "")
    return Row(
        path.stem,
        style,
        _checked(turns, turns.answer(), Read(SAID, "", [])),
        _checked(turns, turns.thought(), Read(SAID, THOUGHT, [])),
        _checked(turns, turns.calls(CALLS[:1]), Read("", "", CALLS[:1])),
        _checked(turns, turns.calls(CALLS), Read("", "", CALLS)),
        _checked(turns, turns.calls(CALLS[:1], thought=True), Read("", THOUGHT, CALLS[:1])),
        _forced(notation),
    )


def _checked(turns: Turns, written: tuple[str, str] | None, expected: Read) -> str:
    """Return what becomes of an answer: the mark that the prompt ends with, and what the template writes."""
    if written is None:
        return NONE
    begun, body = written
    whole = read(turns.notation, begun, [body])
    cut = read(turns.notation, begun, list(body))
    if whole != cut:
        return "depends on how it is cut"
    if whole == expected:
        return WORKS
    if whole.calls != expected.calls:
        return (
            f"{len(whole.calls)} calls read" if len(whole.calls) != len(expected.calls) else "other arguments"
        )
    return "thought is wrong" if whole.thought != expected.thought else "text beside it"


def read(notation: Notation, begun: str, pieces: Iterable[str]) -> Read:
    """Return what is read of an answer that comes in `pieces`."""
    reader = AnswerReader(notation, begun, {name: _schemas(values) for name, values in CALLS})
    parts: list[Part] = []
    for piece in pieces:
        parts += reader.feed(piece)
    parts = joined(parts + reader.finish())
    calls: list[tuple[str, str]] = []
    for part in parts:
        if isinstance(part, CallBegun):
            calls.append((part.name, ""))
        elif isinstance(part, Arguments):
            calls[-1] = calls[-1][0], calls[-1][1] + part.text
    return Read(
        "".join(part.text for part in parts if isinstance(part, Said)).strip(),
        "".join(part.text for part in parts if isinstance(part, Thought)),
        [(name, json.loads(values)) for name, values in calls],
    )


def _forced(notation: Notation) -> str:
    """Return whether the grammar of a forced call ends after one call, which is read as that."""
    calls = None if notation.harmony else notation.calls or HERMES
    wanted = {
        name: {key: {"enum": [value], **schema_of(value)} for key, value in values.items()}
        for name, values in CALLS[:1]
    }
    tools = [
        {
            "function": {
                "name": name,
                "parameters": {"type": "object", "properties": each, "required": list(each)},
            }
        }
        for name, each in wanted.items()
    ]
    text = _only_text(f"{OPTIONS}\n{call_rules(calls, tools)}\nstart: call\n")
    if text is None:
        return "does not end"
    return WORKS if read(notation, "", [text]) == Read("", "", CALLS[:1]) else "is not read back"


def _only_text(grammar: str) -> str | None:
    """Return a text that a grammar allows, which ends as soon as it may; None: that comes to no end."""
    matcher = LLMatcher(_BYTES, grammar, log_level=0, limits=LIMITS)
    text = b""
    while not matcher.is_accepting() and len(text) < _MOST:
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little")[:256])
        if not allowed.size:
            return None
        byte = next((int(one) for one in allowed if chr(one).strip()), int(allowed[0]))
        matcher.consume_token(byte)
        text += bytes([byte])
    return text.decode() if matcher.is_accepting() else None


def _schemas(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: schema_of(value) for key, value in values.items()}


def main(arguments: Sequence[str]) -> None:
    """Write the document about the templates of a folder to a file."""
    folder, path = arguments
    Path(path).write_text(table(Path(folder)))


if __name__ == "__main__":
    main(sys.argv[1:])
