"""Requests of the normal world, and the terms on which they are made.

Each is answered by messages of `answers`, or by Failed.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from flexserve.protocol.bounds import MAX_TEXTS, KeepAlive, Message, Name, Serial, Short, Text
from flexserve.protocol.prompts import Entry, Prompt, Source
from flexserve.protocol.sampling import Sampling


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """On what terms a request is made: whose it is, how urgent, and what comes after it."""

    # KV is reused between requests of one owner only: how fast an answer comes would tell others
    # what was asked before.
    owner: Short = ""
    # False: compute the whole prompt anew, and keep no KV of it. With reuse it is computed in other
    # pieces than before, and llama.cpp's kernels may round differently for other batch sizes.
    reuse: bool = True
    priority: Annotated[int, Meta(ge=-10, le=10)] = 0  # higher goes first
    next_model: Name | None = None  # the caller expects to ask this model next: prefetch it
    progress: bool = False  # whether each graph of the prompt is told (Prefilled)
    keep_alive: KeepAlive | None = None  # seconds; None: as the server is configured


class Generate(Message, Terms, frozen=True):
    """Run a prompt. Answered by Started, Prefilled…, Delta… and Finished, or by Failed.

    After the answer's end as many tokens are computed, and thrown away, as make their number a multiple of
    `rounding`: who watches learns that multiple, and not how long the answer is.
    """

    request: Serial
    model: Name
    prompt: Prompt
    sampling: Sampling
    rounding: Annotated[int, Meta(ge=1, le=1 << 12)] = 1  # tokens


class Embed(Message, Terms, frozen=True):
    """Turn each text into a vector. Answered by Started, Embedded… and Finished, or by Failed.

    A text may be given as tokens. With a `query`, each text is ranked instead: its vector has one number,
    the higher the better it answers the query.
    """

    request: Serial
    model: Name
    texts: Annotated[list[Entry], Meta(min_length=1, max_length=MAX_TEXTS)]
    query: Text | None = None


class Convert(Message, frozen=True):
    """Turn a text into tokens, tokens into text, or a conversation into what the model gets of it; or
    show the template that does the last.

    Nothing is computed. Answered by Started, Converted and Finished, or by Failed.
    """

    request: Serial
    model: Name
    source: Source
    keep_alive: KeepAlive | None = None  # seconds


class Try(Message, frozen=True):
    """Open a model, compute once with it, and record what it can do. Answered as Warm is."""

    request: Serial
    model: Name


class Warm(Message, frozen=True):
    """Bring all of a model's weights into memory. Answered by Started and Finished, or by Failed."""

    request: Serial
    model: Name
    keep_alive: KeepAlive | None = None  # seconds


class Cancel(Message, frozen=True):
    """The client is gone; stop. Answered by Failed(code="cancelled") unless already ended."""

    request: Serial
