"""What a scripted world does (testing.scripted_world): its models, how each behaves, how it starts."""

from __future__ import annotations

import enum

import msgspec

from flexserve.protocol.messages import PROTOCOL_VERSION
from flexserve.protocol.statuses import Failure


class Fault(enum.Enum):
    """How a request goes wrong, after the behaviour's tokens were sent."""

    NONE = "none"
    FAIL = "fail"  # Failed: the stored data is bad
    DIE = "die"  # the process exits without a word
    CUT_OFF = "cut_off"  # it exits as a client does that was cut off from its application
    GARBAGE = "garbage"  # bytes that are no frame
    OVERSIZED = "oversized"  # a frame that announces 4 GiB
    UNASKED = "unasked"  # a Delta for a request that was never made
    REPEATED = "repeated"  # Started twice
    SILENCE = "silence"  # nothing more, for ever
    STILL = "still"  # the same, and the watchdog tells of it


class Behaviour(msgspec.Struct, frozen=True):
    """What a request to one model does. Times in seconds, sizes in bytes."""

    tokens: list[str] = msgspec.field(default_factory=lambda: ["Hello", ",", " world", "!"])
    queue_delay: float = 0.0
    prefill_delay: float = 0.0
    token_delay: float = 0.0
    reason: str = "stop"
    memory: int = 0  # asked for before the first token, and returned after the last
    fault: Fault = Fault.NONE
    sizes: tuple[int, int, int, int] = (1000, 250, 30, 20)  # of its weights, what is in memory, KV, scratch


class Script(msgspec.Struct, frozen=True):
    """A scripted world: its models by name, and how it starts."""

    models: dict[str, Behaviour] = msgspec.field(default_factory=lambda: {"tiny": Behaviour()})
    max_queue: int = 8  # requests in flight beyond which it answers queue_full
    version: int = PROTOCOL_VERSION
    start_failure: Failure | None = None  # printed instead of starting, with exit status 3
    dies_at_start: bool = False
