"""What comes before a generation: the prompt's tokens, what confines the answer and what chooses its tokens.

Most of it is work for strangers (a model file's template, a client's schema), so it is done beside the
engine's thread: other requests' tokens go on meanwhile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from flexserve.errors import CallerError
from flexserve.protocol.messages import ChatPrompt, Generate, InfillPrompt, TextPrompt, TokenPrompt
from flexserve.trusted.engine.sampler import Sampler
from flexserve.trusted.engine.vocabulary import TextStream, Vocabulary
from flexserve.trusted.open_model import OpenModel
from flexserve.trusted.text.constraint import constraint
from flexserve.trusted.text.contents import ChatTokens, chat_tokens
from flexserve.trusted.text.grammar import Confinement
from flexserve.trusted.text.infill import infill_tokens
from flexserve.trusted.text.rendering.renderer import Renderer

T = TypeVar("T")

_THREADS = 4  # of which most wait for the helper


@dataclasses.dataclass(slots=True)
class Prepared:
    """A request ready to be computed by `entry`."""

    entry: OpenModel
    tokens: list[int]
    sampler: Sampler
    thinking: bool = False  # the answer begins inside of a thought
    echo: str = ""  # what of the prompt comes before the answer


class Preparation:
    """Prepares requests, several at a time, beside the engine's thread."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="preparation")

    def start(self, work: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
        """Do `work` in another thread, which calls `done` with what came of it.

        The model that it is for has to stay open until then.
        """
        self._threads.submit(self._run, work, done)

    @staticmethod
    def _run(work: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
        try:
            result: T | BaseException = work()
        except BaseException as error:  # whatever it is, the client hears of it
            result = error
        done(result)

    def prepare(self, entry: OpenModel, request: Generate) -> Prepared:
        """Return `request` prepared. Raises CallerError for a prompt that is empty or does not fit, and
        for what cannot be rendered or enforced; StoredDataError for a template that is wrong.
        """
        tokens, thinking = _tokens(entry, request)
        grammar = constraint(request, entry.template, self._renderer.translate)
        confinement = None
        if grammar is not None:  # with one, the answer itself begins at once
            self._renderer.compile(grammar)
            confinement, thinking = Confinement(entry.vocabulary.tree(), grammar), False
        sampling, vocabulary = request.sampling, entry.vocabulary
        sampler = Sampler(sampling, vocabulary, tokens, entry.context.size, confinement)
        echo = _text(request, tokens, vocabulary) if sampling.echo else ""
        return Prepared(entry, tokens, sampler, thinking, echo)


def _text(request: Generate, tokens: list[int], vocabulary: Vocabulary) -> str:
    """Return the text of the prompt."""
    if isinstance(request.prompt, TextPrompt):
        return request.prompt.text
    stream = TextStream(vocabulary)
    return "".join(map(stream.feed, tokens)) + stream.finish()


def _numbered(prompt: TokenPrompt, vocabulary: Vocabulary) -> list[int]:
    """Return the tokens of a prompt in numbers and texts. Raises CallerError for what is no token."""
    tokens: list[int] = []
    for place, part in enumerate(prompt.tokens):
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


def _tokens(entry: OpenModel, request: Generate) -> ChatTokens:
    prompt, vocabulary = request.prompt, entry.vocabulary
    if isinstance(prompt, ChatPrompt):
        tokens, thinking = chat_tokens(prompt, entry.template, vocabulary)
    elif isinstance(prompt, InfillPrompt):
        tokens, thinking = infill_tokens(prompt, vocabulary), False
    elif isinstance(prompt, TokenPrompt):
        tokens, thinking = _numbered(prompt, vocabulary), False
    else:
        tokens, thinking = vocabulary.encode(prompt.text, special=True), False
    if not tokens:
        raise CallerError("The prompt is empty.", hint="Send some text.", code="prompt_empty")
    size = entry.context.size
    if len(tokens) >= size:
        raise CallerError(
            f"The prompt has {len(tokens)} tokens; the context holds {size}, answer included.",
            hint="Shorten the prompt, or serve with a larger --context.",
            code="context_length_exceeded",
        )
    return ChatTokens(tokens, thinking)
