"""What an answer consists of, for whatever API tells a client of it.

An answer is a sequence of these parts, each as early as it is known. `Arguments` belong to the call that
began last; together they are its arguments, JSON of an object as far as the model writes JSON.
"""

from __future__ import annotations

import dataclasses


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


def joined(parts: list[Part]) -> list[Part]:
    """Return the same parts with neighbours of one kind put together."""
    whole: list[Part] = []
    for part in parts:
        last = whole[-1] if whole else None
        if isinstance(last, Said) and isinstance(part, Said):
            whole[-1] = Said(last.text + part.text)
        elif isinstance(last, Thought) and isinstance(part, Thought):
            whole[-1] = Thought(last.text + part.text)
        elif isinstance(last, Arguments) and isinstance(part, Arguments):
            whole[-1] = Arguments(last.text + part.text)
        else:
            whole.append(part)
    return whole
