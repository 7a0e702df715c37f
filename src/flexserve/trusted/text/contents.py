"""What people and tools said in a conversation stays text, whatever it looks like: turns cannot be forged.

A chat template writes control tokens ("<|im_end|>") as text, between contents that may hold the same
text. So before rendering, characters of contents that might become a part of a control token are
replaced, one by one, by characters that nobody used; afterwards they come back, and their places are
known. Where no such place is in the text of a control token, as in all ordinary conversations, the text
goes to llama.cpp's tokenizer whole, and its tokens are llama.cpp's. Else that place is tokenized
apart, as plain text.

Tags like "<think>" and "<tool_call>", which many files declare as words of users, count as control tokens
where the template writes them. Not in what the system and the assistant say: instructions name them, and
the model's own answers, which come back with the next turn, have them as tokens.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import msgspec

from flexserve.errors import CallerError
from flexserve.protocol.prompts import ChatMessage, ChatPrompt
from flexserve.trusted.text.chat_template import ChatTemplate
from flexserve.trusted.text.markers import Markers, Span
from flexserve.trusted.text.tokenizer import Tokenizer

# Characters for private use, in the order in which they are tried.
_PLACEHOLDERS = (range(0x100000, 0x10FFFE), range(0xF0000, 0xFFFFE))
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')  # of JSON
_TRUSTED = ("system", "developer", "assistant")  # roles whose turns may hold the template's own tags


class ChatTokens(NamedTuple):
    """A conversation as a model takes it; `begun`: the mark of its answer that it ends with ("": none)."""

    tokens: list[int]
    begun: str = ""


class Parts(NamedTuple):
    """A text in parts, each with whether control tokens in it are meant; `start`: the one that begins a text
    goes first."""

    texts: list[tuple[str, bool]]
    start: bool


def chat_tokens(
    prompt: ChatPrompt, template: ChatTemplate, vocabulary: Tokenizer, *, confined: bool = False
) -> ChatTokens:
    """Return the tokens of a conversation; `confined` and errors are those of rendering it."""
    text, tokens = rendered(prompt, template, vocabulary, confined=confined)
    return ChatTokens(tokens, template.begun(text))


def rendered(
    prompt: ChatPrompt, template: ChatTemplate, vocabulary: Tokenizer, *, confined: bool = False
) -> tuple[str, list[int]]:
    """Return the text that a template makes of a conversation, and its tokens; the rest as `chat_tokens`."""
    text, parts = parts_of(prompt, template, vocabulary, confined=confined)
    return text, vocabulary.encode_parts(parts.texts, start=parts.start)


def parts_of(
    prompt: ChatPrompt, template: ChatTemplate, vocabulary: Tokenizer, *, confined: bool = False
) -> tuple[str, Parts]:
    """Return the text that a template makes of a conversation, and its parts; the rest as `chat_tokens`."""
    contents = Contents(prompt, vocabulary.markers, template.structure)
    text, hidden = contents.shown(template.render(contents.hidden, confined=confined))
    start = not (template.beginning and text.startswith(template.beginning))
    plain = list(_common(template.structure.occurrences(text), hidden)) if hidden else []
    return text, Parts(list(_parts(text, plain)), start)


class Contents:
    """The contents of one conversation: `hidden` is it without a control token's text in them.

    `markers` are the control tokens' texts, `structure` these and the template's own tags.
    """

    def __init__(self, prompt: ChatPrompt, markers: Markers, structure: Markers) -> None:
        self._markers, self._structure = markers, structure
        self._prompt = prompt
        self._places: dict[str, str] = {}  # the placeholder of each character
        self._free: Iterator[str] | None = None
        tools = None if prompt.tools is None else self._in_json(prompt.tools, structure)
        turns = [self._turn(message) for message in prompt.messages]
        values = None if prompt.values is None else self._in_json(prompt.values, structure)
        self.hidden = msgspec.structs.replace(prompt, messages=turns, tools=tools, values=values)

    def shown(self, text: str) -> tuple[str, list[Span]]:
        """Return a text that was made of `hidden`, with what was hidden, and the places of that."""
        if not self._places:
            return text, []
        hidden = [found.span() for found in re.finditer(f"[{''.join(self._places.values())}]+", text)]
        return text.translate({ord(place): char for char, place in self._places.items()}), hidden

    def _turn(self, message: ChatMessage) -> ChatMessage:
        markers = self._markers if message.role in _TRUSTED else self._structure
        hide = functools.partial(self._hide, risks=markers.risks)
        calls = [
            msgspec.structs.replace(
                call,
                id=hide(call.id),
                name=hide(call.name),
                arguments=self._in_json(call.arguments, markers),
            )
            for call in message.tool_calls
        ]
        texts = (message.content, message.tool_call_id, message.name, message.thought)
        content, of, name, thought = map(hide, texts)
        return ChatMessage(message.role, content, calls, of, name, thought)

    def _in_json(self, text: str, markers: Markers) -> str:
        """Return JSON with its strings hidden, however they are escaped; what is none is hidden as it is."""
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return self._hide(text, markers.risks)
        return _STRING.sub(functools.partial(self._string, markers), text)

    def _string(self, markers: Markers, found: re.Match[str]) -> str:
        text = json.loads(found.group(), strict=False)
        hidden = self._hide(text, markers.occurrences)  # "function" stays what templates look for
        return found.group() if hidden == text else json.dumps(hidden, ensure_ascii=False)

    def _hide(self, text: str, risks: Callable[[str], Iterator[Span]]) -> str:
        done = 0
        parts = []
        for start, end in sorted(risks(text)):
            if end > done:
                parts += [text[done:start], *map(self._place, text[max(start, done) : end])]
                done = end
        return "".join([*parts, text[done:]])

    def _place(self, char: str) -> str:
        if char not in self._places:
            if self._free is None:
                used = set(msgspec.json.encode(self._prompt).decode(errors="replace"))
                self._free = (char for char in map(chr, chain(*_PLACEHOLDERS)) if char not in used)
            try:
                self._places[char] = next(self._free)
            except StopIteration:
                raise CallerError(
                    "The conversation uses all of Unicode's private characters.", hint="Leave some out."
                ) from None
        return self._places[char]


def _common(occurrences: Iterator[Span], hidden: Sequence[Span]) -> Iterator[Span]:
    """Yield, in order and apart, what of `hidden` lies in one of `occurrences`; both are in order."""
    done = at = 0
    for start, end in occurrences:
        while at < len(hidden) and hidden[at][1] <= start:
            at += 1
        for number in range(at, len(hidden)):
            first, last = max(hidden[number][0], start, done), min(hidden[number][1], end)
            if hidden[number][0] >= end:
                break
            if first < last:
                yield first, last
                done = last


def _parts(text: str, plain: Sequence[Span]) -> Iterator[tuple[str, bool]]:
    """Yield the parts of `text`, each with whether control tokens in it are meant."""
    done = 0
    for start, end in plain:
        if done < start:
            yield text[done:start], True
        yield text[start:end], False
        done = end
    if done < len(text) or not plain:
        yield text[done:], True
