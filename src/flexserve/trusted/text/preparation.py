"""What comes before a generation: the prompt's tokens, and what confines the answer.

Most of it is work for strangers (a model file's template, a client's schema), so it is done beside the
engine's thread: other requests' tokens go on meanwhile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from flexserve.errors import CallerError
from flexserve.protocol.messages import ChatPrompt, Generate, InfillPrompt
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
    confinement: Confinement | None  # with one, the answer itself begins at once
    thinking: bool = False  # the answer begins inside of a thought


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
        grammar = constraint(request, entry.template)
        if grammar is None:
            return Prepared(entry, tokens, None, thinking)
        self._renderer.compile(grammar)
        return Prepared(entry, tokens, Confinement(entry.vocabulary.tree(), grammar))


def _tokens(entry: OpenModel, request: Generate) -> ChatTokens:
    prompt, vocabulary = request.prompt, entry.vocabulary
    if isinstance(prompt, ChatPrompt):
        tokens, thinking = chat_tokens(prompt, entry.template, vocabulary)
    elif isinstance(prompt, InfillPrompt):
        tokens, thinking = infill_tokens(prompt, vocabulary), False
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
