"""What a server reports of itself, as its clients read it (flexserve.normal.api.operations, .memory).

Sizes are bytes, durations milliseconds. Unknown fields are skipped: a newer server may say more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator

import msgspec

from flexserve.protocol.answer_parts import Thought
from flexserve.protocol.answers import Timings, Usage
from flexserve.protocol.model_options import ModelOptions


class Protection(msgspec.Struct, frozen=True):
    """What protects the server's secure memory."""

    name: str
    protected: bool
    summary: str


class Health(msgspec.Struct, frozen=True):
    """The answer of GET /health."""

    status: str
    protection: Protection
    engine: str


class Attestation(msgspec.Struct, frozen=True):
    """The answer of GET /v1/attestation, which nobody vouches for: flexserve.attestation verifies it."""

    chain: list[bytes]
    token: bytes


class ModelError(msgspec.Struct, frozen=True):
    """Why a model cannot be used."""

    code: str
    message: str
    hint: str


class Able(msgspec.Struct, frozen=True):
    """What commands want to know of what a model can do: whether it brings a chat template."""

    template: bool


class ModelState(msgspec.Struct, frozen=True):
    """One model: how much of it is in memory."""

    name: str
    state: str
    weights: int
    resident: int
    resident_fraction: float
    kv: int
    scratch: int
    running: bool
    error: ModelError | None = None
    pinned: bool = False
    rewarmed: int = 0
    rewarmed_for: str = ""
    abilities: Able | None = None  # None: nobody tried it yet
    context: int = 0  # tokens of a request and its answer; 0: unknown
    kv_type: str = ""
    draft: str = ""  # the smaller model that guesses its next tokens
    options: ModelOptions = ModelOptions()
    chunks: list[tuple[str, int]] = []  # states of its chunks of weights, each with how many on end
    leaves_in_ms: float | None = None  # when what it keeps while it is idle goes back unasked; None: never
    gone: str = ""  # why weights of it that were in memory are not there any more


class MemoryTotals(msgspec.Struct, frozen=True):
    """Secure memory by owner."""

    chunk: int
    granted: int
    unused: int
    secure: int
    recalling: int


class OsCounts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the OS counts, as the normal world reads it; `*_claimed` is the secure world's word.

    `guest`: the kernel of the secure world's machine counts, and `secure_rss` is what it handed over.
    """

    total: int
    available: int
    secure_rss: int
    stall: float | None = None
    secure_pid: int | None = None
    secure_claimed: int | None = None
    rss_claimed: int | None = None
    guest: bool = False


class NpuState(msgspec.Struct, frozen=True):
    """The NPU as the secure world sees it, and what it did; see flexserve.protocol.statuses.NpuStatus."""

    state: str
    switches: int
    jobs: int
    products: int
    fallbacks: int
    lost: int
    held_ms: float


class States(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer of GET /models. `npu` is left out where there is none."""

    protection: Protection
    models: list[ModelState]
    queued: int
    running: int
    memory: MemoryTotals
    os: OsCounts
    npu: NpuState | None = None


class Card(msgspec.Struct, frozen=True):
    """A model of GET /v1/models."""

    id: str
    abilities: Able | None = None  # None: nobody tried it yet


class Cards(msgspec.Struct, frozen=True):
    """The answer of GET /v1/models, which `flexserve connect` has, too."""

    data: list[Card]


class Claimed(msgspec.Struct, frozen=True):
    """Secure memory around a recall, by the secure world's account."""

    before: int
    after: int


class Measured(msgspec.Struct, frozen=True):
    """The secure process around a recall, by the OS's count."""

    freed: int
    before: OsCounts
    after: OsCounts


class RecallResult(msgspec.Struct, frozen=True):
    """The answer of POST /recall."""

    asked: int | None
    returned: int
    protected: int
    elapsed_ms: float
    plan: list[str]
    claimed: Claimed
    measured: Measured


class Budget(msgspec.Struct, frozen=True):
    """What may be held now, what bounds it, and that in words."""

    size: int
    bound: str
    reason: str


class MemoryState(msgspec.Struct, frozen=True):
    """The answer of GET /memory."""

    granted: int
    cap: int | None
    budget: Budget
    pins: list[str]


class NeedResult(msgspec.Struct, frozen=True):
    """The answer of POST /memory/need."""

    asked: int
    satisfied: bool
    freed: int
    elapsed_ms: float
    plan: list[str]
    hold_seconds: float
    before: OsCounts
    after: OsCounts


class CapResult(msgspec.Struct, frozen=True):
    """The answer of PUT /memory/cap."""

    cap: int | None
    granted: int


class Decision(msgspec.Struct, frozen=True):
    """One line of the log of memory decisions; times in seconds since the epoch."""

    number: int
    at: float
    until: float
    kind: str
    size: int
    count: int
    reason: str
    model: str = ""


class DecisionLog(msgspec.Struct, frozen=True):
    """The answer of GET /memory/decisions. Lines up to number `settled` do not change any more."""

    settled: int
    decisions: list[Decision]


class Why(msgspec.Struct, frozen=True):
    """Why there is no secure world, and what to do."""

    message: str
    hint: str


class Point(msgspec.Struct, frozen=True):
    """Sizes at one look; of each model what is in memory of its weights, KV and scratch."""

    at: float  # seconds since the epoch
    total: int
    available: int
    secure_rss: int
    unused: int
    recalling: int
    models: dict[str, tuple[int, int, int]]


class RequestLine(msgspec.Struct, frozen=True):
    """One of the last requests; `reason` is empty while it runs. See flexserve.normal.request_log."""

    number: int
    model: str
    at: float
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    reason: str
    ttft: float
    queue: float
    restore: float
    prefill: float
    decode: float
    restored_bytes: int


class Past(msgspec.Struct, frozen=True, tag_field="type", tag="history"):
    """The first event of GET /events: what those saw who watched before."""

    points: list[Point]
    period: float


class Present(msgspec.Struct, frozen=True, tag_field="type", tag="state"):
    """An event of GET /events: what holds now. `memory` and `os` are None without a secure world."""

    at: float
    status: str
    protection: Protection
    error: Why | None = None
    budget: Budget | None = None
    models: list[ModelState] = []
    queued: int = 0
    running: int = 0
    memory: MemoryTotals | None = None
    os: OsCounts | None = None


class NewDecisions(msgspec.Struct, frozen=True, tag_field="type", tag="decisions"):
    """An event of GET /events: decisions that are new, or that grew."""

    decisions: list[Decision]


class NewRequests(msgspec.Struct, frozen=True, tag_field="type", tag="requests"):
    """An event of GET /events: requests that are new, or that went on."""

    requests: list[RequestLine]


Event = Past | Present | NewDecisions | NewRequests


@dataclasses.dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ended: "stop" or "length", the tokens it took and where the time went."""

    reason: str
    usage: Usage
    timings: Timings


# An answer as it comes: pieces of text and of thoughts, and at last how it ended.
Answer = Generator[str | Thought | Ending, None, None]
