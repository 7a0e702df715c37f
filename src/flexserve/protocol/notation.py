"""How a model writes its thoughts and its calls of tools: what is read off its chat template.

A call is written as

    begin  open NAME middle ARGUMENTS close  between  open … close  end

where every part may be empty. Where white space stands in a part, models write more or less of it. `ANY`
in a part stands for a word that changes, as the id of a call.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec
from msgspec import Meta

ANY = "\0"
Mark = Annotated[str, Meta(max_length=256)]


class Style(enum.Enum):
    """How NAME and ARGUMENTS are written."""

    JSON = "json"  # one JSON object has both
    NAMED = "named"  # the name, then a JSON object
    TAGGED = "tagged"  # the name, then each argument with its name between marks
    PYTHON = "python"  # calls of functions in Python: name(key=value), several in a list
    BRACED = "braced"  # the name, then an object like JSON whose keys have no quotes


class CallNotation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How calls are written; see the module.

    JSON: `name_key` and `arguments_key` are the object's keys ("": the name is the key of the arguments);
    `listed`: the objects are in a list. TAGGED: `key_open KEY key_close VALUE value_close` for each argument.
    BRACED: `quote` is around strings. NAMED, `numbered`: the name is a part of an id, "functions.f:0".
    `single`: the template writes no more than one call in a turn.
    """

    style: Style
    begin: Mark = ""
    open: Mark = ""
    middle: Mark = ""
    close: Mark = ""
    between: Mark = ""
    end: Mark = ""
    name_key: Mark = "name"
    arguments_key: Mark = "arguments"
    listed: bool = False
    key_open: Mark = ""
    key_close: Mark = ""
    value_close: Mark = ""
    quote: Mark = ""
    numbered: bool = False
    single: bool = False

    @property
    def in_list(self) -> bool:
        """Whether calls are elements of a list."""
        return self.listed or self.style is Style.PYTHON

    @property
    def writes_several(self) -> bool:
        """Whether it is known how more than one call is written."""
        return self.in_list or not self.single

    @property
    def bare(self) -> bool:
        """Whether nothing but its form tells a call from an answer."""
        return not (self.begin + self.open).strip()


class Notation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How thoughts and calls are written. `calls` None: as `HERMES` or `BARE`.

    `harmony`: in the channels of OpenAI's gpt-oss, and nothing else counts. `dropped` are marks around what
    is said, which are no part of it.
    """

    thought_open: Mark = "<think>"
    thought_close: Mark = "</think>"
    calls: CallNotation | None = None
    harmony: bool = False
    dropped: Annotated[list[Mark], Meta(max_length=8)] = msgspec.field(default_factory=list)

    @property
    def marks(self) -> list[str]:
        """All marks that it has: tokens in them have to be shown."""
        if self.harmony:
            return list(HARMONY_MARKS)
        marks = [self.thought_open, self.thought_close, *self.dropped]
        if (calls := self.calls) is not None:
            marks += [calls.begin, calls.open, calls.middle, calls.close, calls.between, calls.end]
            marks += [calls.key_open, calls.key_close, calls.value_close, calls.quote]
        return [mark for mark in marks if mark]


HARMONY_MARKS = (
    *("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"),
    *("<|end|>", "<|call|>", "<|return|>"),
)
# What most models were shown, and what the others are told to write: Hermes, Qwen; Llama 3.
HERMES = CallNotation(Style.JSON, open="<tool_call>\n", close="\n</tool_call>", between="\n")
BARE = CallNotation(Style.JSON, arguments_key="parameters", between="; ")
