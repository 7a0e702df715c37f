"""What comes before a generation: the prompt's tokens, what confines the answer and what chooses its tokens.

Most of it is work for strangers (a model file's template, a client's schema), so it is done beside the
engine's thread: other requests' tokens go on meanwhile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from flexserve.protocol.requests import Generate
from flexserve.trusted.engine.sampler import Sampler
from flexserve.trusted.open_model import OpenModel
from flexserve.trusted.text import confining
from flexserve.trusted.text.grammar import Confinement
from flexserve.trusted.text.prompt import Prompt, tokenized
from flexserve.trusted.text.rendering.renderer import Renderer
from flexserve.trusted.text.thoughts import Thoughts

T = TypeVar("T")

_THREADS = 4  # of which most wait for the helper


@dataclasses.dataclass(slots=True)
class Prepared:
    """A request ready to be computed by `entry`."""

    entry: OpenModel
    prompt: Prompt
    sampler: Sampler
    thoughts: Thoughts
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
        vocabulary, size = entry.vocabulary, entry.context.size
        prompt = tokenized(request, entry.template, vocabulary, size)
        confinement = confining.confinement(request, prompt, entry.template, vocabulary, self._renderer)
        thoughts = confining.thoughts(request, prompt, vocabulary, must_end=confinement is not None)
        sampler = Sampler(
            *(request.sampling, vocabulary, prompt.tokens, size),
            confinement=None if thoughts.inside else confinement,
        )
        return Prepared(entry, prompt, sampler, thoughts, confinement)
