"""Between text and tokens, without computing: what clients ask to count, to cut and to look at."""

from __future__ import annotations

import codecs
from collections.abc import Callable

import msgspec

from flexserve.errors import CallerError
from flexserve.protocol.answers import Converted, Finished, Started, Timings, Usage
from flexserve.protocol.bounds import MAX_TOKENS
from flexserve.protocol.prompts import AskTemplate, ChatPrompt, ToTokens
from flexserve.protocol.requests import Convert
from flexserve.trusted.text.chat_template import ChatTemplate
from flexserve.trusted.text.contents import rendered
from flexserve.trusted.text.tokenizer import Tokenizer

_MAX_SIZE = 3 << 20  # bytes of an answer: less than a frame holds
_COST = 6  # bytes around a token or a piece, at most


def convert(request: Convert, template: ChatTemplate, vocabulary: Tokenizer) -> Converted:
    """Return what `request` asks for. Beside the engine's thread: a template is a stranger's code.

    Raises CallerError for tokens that the model has not and for what is too long, and what rendering a
    conversation raises.
    """
    source = request.source
    text = ""
    tokens: list[int] = []
    pieces: list[bytes] = []
    if isinstance(source, ChatPrompt):
        text, tokens = rendered(source, template, vocabulary)
    elif isinstance(source, ToTokens):
        tokens = vocabulary.encode(source.text, special=source.special, start=source.start)
        pieces = [vocabulary.piece(token, special=True) for token in tokens] if source.pieces else []
    elif isinstance(source, AskTemplate):
        text = template.own
        pieces = [template.beginning.encode(), template.end.encode()]
    else:
        _check(source.tokens, vocabulary.size)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        data = b"".join(vocabulary.piece(token, special=True) for token in source.tokens)
        text = decoder.decode(data, final=True)
    size = len(text.encode()) + _COST * (len(tokens) + len(pieces)) + sum(map(len, pieces))
    if size > _MAX_SIZE or len(tokens) > MAX_TOKENS:
        raise CallerError("It is too long to be converted in one piece.", hint="Send it in parts.")
    return Converted(request.request, text, tokens, pieces)


def give(converted: Converted, send: Callable[[msgspec.Struct], None]) -> Finished:
    """Send what was converted; return the end."""
    count = len(converted.tokens)
    send(Started(converted.request, count))
    send(converted)
    return Finished(converted.request, "stop", Usage(count, 0), Timings())


def _check(tokens: list[int], size: int) -> None:
    if any(token >= size for token in tokens):
        raise CallerError(
            f"The model has no such token: they are 0 to {size - 1}.",
            hint="Send tokens that this model made.",
            code="no_such_token",
        )
