"""What comes of a request: its text, vectors, probabilities, counts and times, and its end.

Durations are milliseconds.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from flexserve.protocol.bounds import MAX_STOPS, MAX_TEXTS, Count, Message, Millis, Serial, Struct
from flexserve.protocol.notation import Mark, Notation
from flexserve.protocol.sampling import TokenId
from flexserve.protocol.statuses import Failure


class TokenLogprob(Struct, frozen=True):
    """A token's own bytes and its natural-log probability under the model, before temperature.

    A token may be a part of a character only: the bytes of all tokens together are the text. The first
    token of a prompt has no probability.
    """

    piece: bytes
    logprob: float | None
    id: TokenId = 0


class Choice(Struct, frozen=True):
    """A generated token with the likeliest alternatives at its position."""

    token: TokenLogprob
    top: list[TokenLogprob]


class Usage(Struct, frozen=True):
    """Token counts of a request."""

    prompt_tokens: Count
    completion_tokens: Count
    cached_tokens: Count = 0


class Timings(Struct, frozen=True):
    """Where a request's time went, in milliseconds.

    `ttft` runs from the secure world's receipt of the request to its first token. `restore`
    is wall time that compute stood waiting for memory to come back. `allocate`, `load` and
    `decrypt` are what loader threads spent on getting memory, reading and AES: thread time, most
    of it hidden behind compute.
    """

    queue: Millis = 0
    restore: Millis = 0
    allocate: Millis = 0
    load: Millis = 0
    decrypt: Millis = 0
    prefill: Millis = 0
    decode: Millis = 0
    ttft: Millis = 0
    restored_bytes: Count = 0
    npu_products: Count = 0  # matrix products that the NPU computed
    guessed: Count = 0  # tokens that a draft guessed …
    guessed_right: Count = 0  # … and of these, those that the model chose


class Started(Message, frozen=True):
    """The request left the queue.

    `notation`: how a conversation's answer is written (None: the answer is text). `begun`: what of it the
    prompt has already, as the mark that begins a thought. `cached_tokens`: how many of the prompt's the KV
    cache has.
    """

    request: Serial
    prompt_tokens: Count
    notation: Notation | None = None
    begun: Mark = ""
    cached_tokens: Count = 0


class Prefilled(Message, frozen=True):
    """The KV cache has so many tokens of the prompt now, where its sender wants to know."""

    request: Serial
    tokens: Count


class Delta(Message, frozen=True):
    """More text; `choices` is filled when logprobs were asked for. `tokens` may be 0 for text
    that was held back while it could have been the start of a stop string. `stop`: which of the
    request's stop strings ended the text behind this. `ids`: the tokens."""

    request: Serial
    text: str
    tokens: Count
    choices: list[Choice] = msgspec.field(default_factory=list)
    stop: Annotated[int, Meta(ge=0, lt=MAX_STOPS)] | None = None
    ids: list[TokenId] = msgspec.field(default_factory=list)


class Embedded(Message, frozen=True):
    """Vectors of the next texts, in order: little-endian float32, of length 1; or one number each."""

    request: Serial
    vectors: Annotated[list[bytes], Meta(max_length=MAX_TEXTS)]


class Converted(Message, frozen=True):
    """What a Convert asked for; `pieces` are the bytes of the tokens, where they were wanted."""

    request: Serial
    text: str
    tokens: list[Count]
    pieces: list[bytes] = msgspec.field(default_factory=list)


class Finished(Message, frozen=True):
    """The request ended well. `reason`: "stop" or "length". Policy reads it: nothing of the text is in it."""

    request: Serial
    reason: str
    usage: Usage
    timings: Timings
    shifted: bool = False  # the context was full, and older tokens went


class Failed(Message, frozen=True):
    """The request ended in an error; no more comes for it."""

    request: Serial
    failure: Failure
