"""What comes before a generation: the prompt's tokens, what confines the answer and what chooses its tokens.

Most of it is work for strangers (a model file's template, a client's schema), so it is done beside the
engine's thread: other requests' tokens go on meanwhile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from flexserve.errors import CallerError
from flexserve.protocol.notation import Notation
from flexserve.protocol.prompts import ChatPrompt, InfillPrompt, TextPrompt, TokenPrompt
from flexserve.protocol.requests import Generate
from flexserve.trusted.engine.sampler import Sampler
from flexserve.trusted.engine.vocabulary import TextStream, Vocabulary
from flexserve.trusted.open_model import OpenModel
from flexserve.trusted.text.constraint import constraint
from flexserve.trusted.text.contents import chat_tokens
from flexserve.trusted.text.grammar import Confinement
from flexserve.trusted.text.infill import infill_tokens
from flexserve.trusted.text.rendering.renderer import Renderer
from flexserve.trusted.text.thoughts import Thoughts, thought_end

T = TypeVar("T")

_THREADS = 4  # of which most wait for the helper


@dataclasses.dataclass(slots=True)
class Prepared:
    """A request ready to be computed by `entry`."""

    entry: OpenModel
    tokens: list[int]
    sampler: Sampler
    thoughts: Thoughts
    echo: str = ""  # what of the prompt comes before the answer
    notation: Notation | None = None  # how the answer is written; None: it is text
    begun: str = ""  # what of the answer the prompt has already
    shown: dict[int, bytes] = dataclasses.field(default_factory=dict)  # control tokens that are text
    confinement: Confinement | None = None  # of what comes behind a thought that begins the answer


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
        prompt, template, vocabulary = request.prompt, entry.template, entry.vocabulary
        notation, begun, shown = None, "", dict[int, bytes]()
        if isinstance(prompt, ChatPrompt):
            sampling = request.sampling
            confined = (sampling.schema or sampling.grammar) is not None and prompt.tools is None
            tokens, begun = chat_tokens(prompt, template, vocabulary, confined=confined)
            notation, shown = template.notation, template.shown
        else:
            tokens = _tokens(prompt, vocabulary)
        _require_room(entry, tokens)
        confinement = self._confinement(entry, request, begun)
        thoughts = _thoughts(prompt, vocabulary, notation, begun, must_end=confinement is not None)
        sampler = Sampler(
            *(request.sampling, vocabulary, tokens, entry.context.size),
            confinement=None if thoughts.inside else confinement,
        )
        echo = _text(request, tokens, vocabulary) if request.sampling.echo else ""
        return Prepared(entry, tokens, sampler, thoughts, echo, notation, begun, shown, confinement)

    def _confinement(self, entry: OpenModel, request: Generate, begun: str) -> Confinement | None:
        grammar = constraint(request, entry.template, self._renderer.translate, begun)
        if grammar is None:
            return None
        self._renderer.compile(grammar.text)
        return Confinement(entry.vocabulary.tree(entry.template.shown if grammar.shown else {}), grammar.text)


def _thoughts(
    prompt: object, vocabulary: Vocabulary, notation: Notation | None, begun: str, *, must_end: bool
) -> Thoughts:
    end = [] if notation is None else vocabulary.encode(thought_end(notation), special=True, start=False)
    most = prompt.thought_tokens if isinstance(prompt, ChatPrompt) else None
    return Thoughts(notation, begun, end, most=most, must_end=must_end)


def _text(request: Generate, tokens: list[int], vocabulary: Vocabulary) -> str:
    """Return the text of the prompt."""
    if isinstance(request.prompt, TextPrompt):
        return request.prompt.text
    stream = TextStream(vocabulary)
    return "".join(map(stream.feed, tokens)) + stream.finish()


def numbered(parts: Sequence[int | str], vocabulary: Vocabulary) -> list[int]:
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


def _tokens(prompt: TextPrompt | TokenPrompt | InfillPrompt, vocabulary: Vocabulary) -> list[int]:
    if isinstance(prompt, InfillPrompt):
        return infill_tokens(prompt, vocabulary)
    if isinstance(prompt, TokenPrompt):
        return numbered(prompt.tokens, vocabulary)
    return vocabulary.encode(prompt.text, special=True)


def _require_room(entry: OpenModel, tokens: Sequence[int]) -> None:
    if not tokens:
        raise CallerError("The prompt is empty.", hint="Send some text.", code="prompt_empty")
    size = entry.context.size
    if len(tokens) >= size:
        raise CallerError(
            f"The prompt has {len(tokens)} tokens. It exceeds the available context size of {size}.",
            hint="Shorten the prompt, or give the model a longer context: flexserve set MODEL context 32k.",
            code="context_length_exceeded",
            counts={"n_prompt_tokens": len(tokens), "n_ctx": size},
        )
