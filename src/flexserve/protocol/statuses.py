"""What the secure world tells of its state: models, memory, KV, NPU, and what went wrong.

Sizes are bytes, durations are milliseconds.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from flexserve.protocol.bounds import Count, Label, Millis, Name, Short, Struct
from flexserve.protocol.model_options import KvType


class Failure(Struct, frozen=True):
    """An error on its way across the boundary; see flexserve.errors."""

    blame: str
    code: Short
    message: Short
    hint: Short = ""
    counts: tuple[tuple[Label, Count], ...] = ()  # what the message counts, by name


class Abilities(Struct, frozen=True):
    """What a model can do. `window`: tokens that attention reaches back in some layers; 0: all."""

    text: bool
    vectors: bool
    encoder: bool  # it reads a text whole
    causal: bool
    window: Count
    recurrent: bool  # in some layers at least
    template: bool  # it brings a chat template
    # The style in which its template has tools called (protocol.notation), and "bare": JSON without marks;
    # "none": the template knows no tools.
    tools: Literal["none", "tagged", "bare", "other", "json", "named", "python", "braced", "harmony"]
    ranks: bool = False  # it says how well texts answer a query


class Description(Struct, frozen=True):
    """What a model is, by its manifest, and how it is served: `context` tokens for each of `sequences`."""

    digest: Label  # SHA-256 of its GGUF, as hex
    size: Count  # bytes of it
    created: Count  # when it was added, in seconds since 1970
    architecture: Label
    parameters: Count
    quantization: Label
    trained_context: Count  # tokens; 0: it does not say
    context: Count  # tokens of a request and its answer, at most
    sequences: Count  # requests that are computed at once
    adapter_of: Label = ""  # the model that it changes, of an adapter
    kv: KvType = "f16"  # in which its KV is kept
    shift: bool = False  # an answer goes on when the context is full, without the older tokens
    draft: Label = ""  # a smaller model guesses its next tokens


CHUNK_STATES = ("absent", "loading", "resident", "evicting")  # of a chunk of weights
MAX_CHUNK_RUNS = 1024
ChunkRuns = Annotated[
    tuple[tuple[Annotated[int, Meta(ge=0, le=3)], Count], ...], Meta(max_length=MAX_CHUNK_RUNS)
]


class ModelStatus(Struct, frozen=True):
    """One model as `flexserve ps` shows it."""

    name: Name
    state: str  # unloaded | loading | partial | loaded
    weights: Count  # bytes of weights when whole
    resident: Count  # bytes of weights that are in memory
    kv: Count  # bytes of KV cache committed
    scratch: Count  # bytes of compute scratch committed
    running: bool
    error: Failure | None = None
    abilities: Abilities | None = None  # None: nobody tried yet
    trial: Count = 0  # which trial found them, a number of its own; 0: none
    # Bytes of ordinary memory that an open model's vocabulary took at most: in `os_rss`, in no grant.
    heap: Count = 0
    # Bytes of weights that were brought back without a request, and that no request has used yet; and why.
    rewarmed: Count = 0
    rewarmed_for: Short = ""
    description: Description | None = None
    # The states of its chunks of weights, in their order: places in CHUNK_STATES, each with how many chunks
    # on end are in it. None of a model that is not open, or where there are more runs than MAX_CHUNK_RUNS.
    chunks: ChunkRuns = ()
    # Milliseconds until what it keeps while it is idle goes back unasked; None: nothing does.
    leaves: Millis | None = None
    gone: Short = ""  # why weights of it that were in memory are not there any more, for people


class MemoryStatus(Struct, frozen=True):
    """The secure world's chunks by owner, and what the OS counts."""

    chunk: Count
    granted: Count  # bytes granted and unused
    secure: Count  # bytes in use
    recalling: Count
    os_secure: Count  # bytes of secure memory that the OS counts
    os_rss: Count  # resident bytes of the whole secure process


class KvStatus(msgspec.Struct, forbid_unknown_fields=True):
    """What became of the KV of ended requests, counted since the start by the trusted application."""

    sealed: Count = 0  # on disk
    resumed: Count = 0  # taken from there by a later request
    damaged: Count = 0  # did not authenticate or did not fit, and was computed anew
    dropped: Count = 0  # given up unsealed, to a recall that left no time or memory for it
    resumed_tokens: Count = 0  # of all that was resumed …
    resumed_ms: Millis = 0.0  # … and how long that took


class ComputeStatus(Struct, frozen=True):
    """What was computed since the start, as policy counts it. Texts of one request count as one graph."""

    graphs: Count = 0
    requests: Count = 0  # that had a part in each, summed up
    checks: Count = 0  # graphs that checked guesses of a draft


class NpuStatus(Struct, frozen=True):
    """The NPU as the secure world sees it, and what it did since the start."""

    state: Annotated[str, Meta(max_length=16)]  # away | coming | held | leaving | refused
    switches: Count  # times that it came
    held: Millis  # that it was here in all
    jobs: Count
    products: Count  # computed by it
    fallbacks: Count  # begun by it, and computed by the CPU
    lost: Count  # jobs that did not end, or not well
