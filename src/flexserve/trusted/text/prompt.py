"""A request's prompt as tokens of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from flexserve.errors import CallerError
from flexserve.protocol.notation import Notation
from flexserve.protocol.prompts import ChatPrompt, InfillPrompt, TextPrompt, TokenPrompt
from flexserve.protocol.requests import Generate
from flexserve.trusted.text.chat_template import ChatTemplate
from flexserve.trusted.text.contents import chat_tokens
from flexserve.trusted.text.infill import infill_tokens
from flexserve.trusted.text.tokenizer import TextStream, Tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """The tokens before an answer, and how that is written."""

    tokens: list[int]
    echo: str = ""  # what of the prompt comes before the answer
    notation: Notation | None = None  # how the answer is written; None: it is text
    begun: str = ""  # what of the answer the prompt has already
    shown: dict[int, bytes] = dataclasses.field(default_factory=dict)  # control tokens that are text


def tokenized(request: Generate, template: ChatTemplate, vocabulary: Tokenizer, room: int) -> Prompt:
    """Return the prompt of `request` in tokens, for a context of `room` tokens.

    Raises CallerError for a prompt that is empty or does not fit, and for what cannot be rendered;
    StoredDataError for a template that is wrong.
    """
    prompt, sampling = request.prompt, request.sampling
    notation, begun, shown = None, "", dict[int, bytes]()
    if isinstance(prompt, ChatPrompt):
        confined = (sampling.schema or sampling.grammar) is not None and prompt.tools is None
        tokens, begun = chat_tokens(prompt, template, vocabulary, confined=confined)
        notation, shown = template.notation, template.shown
    else:
        tokens = _tokens(prompt, vocabulary)
    _require_room(tokens, room)
    echo = _text(request, tokens, vocabulary) if sampling.echo else ""
    return Prompt(tokens, echo, notation, begun, shown)


def _text(request: Generate, tokens: list[int], vocabulary: Tokenizer) -> str:
    """Return the text of the prompt."""
    if isinstance(request.prompt, TextPrompt):
        return request.prompt.text
    stream = TextStream(vocabulary)
    return "".join(map(stream.feed, tokens)) + stream.finish()


def numbered(parts: Sequence[int | str], vocabulary: Tokenizer) -> list[int]:
    """Return the tokens of a text in numbers and texts. Raises CallerError for what is no token."""
    tokens: list[int] = []
    for place, part in enumerate(parts):
        if isinstance(part, str):
            tokens += vocabulary.encode(part, special=True, start=place == 0)
        elif part < vocabulary.size:
            tokens.append(part)
        else:
            raise CallerError(
                "The prompt has a number that is no token of this model.",
                hint=f"It has {vocabulary.size} tokens, from 0 on.",
                code="token_unknown",
            )
    return tokens


def _tokens(prompt: TextPrompt | TokenPrompt | InfillPrompt, vocabulary: Tokenizer) -> list[int]:
    if isinstance(prompt, InfillPrompt):
        return infill_tokens(prompt, vocabulary)
    if isinstance(prompt, TokenPrompt):
        return numbered(prompt.tokens, vocabulary)
    return vocabulary.encode(prompt.text, special=True)


def _require_room(tokens: Sequence[int], size: int) -> None:
    if not tokens:
        raise CallerError("The prompt is empty.", hint="Send some text.", code="prompt_empty")
    if len(tokens) >= size:
        raise CallerError(
            f"The prompt has {len(tokens)} tokens. It exceeds the available context size of {size}.",
            hint="Shorten the prompt, or give the model a longer context: flexserve set MODEL context 32k.",
            code="context_length_exceeded",
            counts={"n_prompt_tokens": len(tokens), "n_ctx": size},
        )
