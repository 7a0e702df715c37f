"""Everything one world can say to the other. Versioned, typed, bounded.

Both directions are tagged unions of frozen structs; an unknown tag, an unknown field, a wrong
type or a value out of bounds is a protocol error (PeerError), never anything else. The first
message each way is the handshake: `Hello` from the normal world, `Welcome` from the secure one. Here are the
handshake and what concerns a world as a whole; the rest has modules of its own.

Sizes are bytes, durations are milliseconds unless the name says otherwise.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from flexserve.protocol.answers import Converted, Delta, Embedded, Failed, Finished, Prefilled, Started
from flexserve.protocol.bounds import MAX_CONFIGURED, Count, Message, Millis, Name, Serial, Short
from flexserve.protocol.evidence import Attest, Attested
from flexserve.protocol.memory import Grant, NeedMemory, Pin, Recall, Recalled, Returned, Spare, WantSpare
from flexserve.protocol.model_options import ModelOptions
from flexserve.protocol.requests import Cancel, Convert, Embed, Generate, Try, Warm
from flexserve.protocol.sealed_messages import Sealed, SealedPart
from flexserve.protocol.statuses import ComputeStatus, KvStatus, MemoryStatus, ModelStatus, NpuStatus

PROTOCOL_VERSION = 25
# Of the messages' schema, by version: it is another one whenever a message changes, and a line is added here.
SCHEMA_DIGESTS = {
    5: "57db8b74f59f63a2",
    6: "a5da4f427ea6960b",
    7: "270f864adf560b4e",
    8: "97f501de274c6c93",
    9: "9a5e5c4476150159",
    10: "059a9cbbbf375020",
    11: "0fbf85f6d46c53eb",
    12: "46b78cb0a8434089",
    13: "39776bd80cc150b6",
    14: "a7dffca1ef554116",
    15: "b61525f146b8b55b",
    16: "d92dc359920a5f60",
    17: "99d7f7aea59936bb",
    18: "c64b1c5ace8f9d89",
    19: "a8713e4016347b69",
    20: "8f066b9c891d5a2b",
    21: "6f49101fbe54556b",
    22: "5c7693814cf510c3",
    23: "1219712b27fbb12f",
    24: "085b4ee91b367d2f",
    25: "dc5c8d7b2f907b11",
}


class Hello(Message, frozen=True):
    """First message of the normal world."""

    version: int


class Welcome(Message, frozen=True):
    """First message of the secure world."""

    version: int
    pid: Count
    protection: Short  # Protection.name
    protected: bool
    summary: Short
    engine: Short  # llama.cpp build and CPU features
    chunk: Count


class Configure(Message, frozen=True):
    """Serve these models in these ways, and all others as usual. What is open changes when it opens next."""

    models: Annotated[dict[Name, ModelOptions], Meta(max_length=MAX_CONFIGURED)]


class Query(Message, frozen=True):
    """Ask for Status. Never wakes a model and never resets an idle timer."""

    serial: Serial


class Shutdown(Message, frozen=True):
    """Finish or stop what runs within `drain` milliseconds, give all memory back, exit."""

    drain: Millis


class Computing(Message, frozen=True):
    """From now on it is `model` that is opened or computes ("": none). Tells whose a death is."""

    model: Annotated[str, Meta(max_length=128)]


class Standstill(Message, frozen=True):
    """Nothing has moved in the engine's turn for so many seconds; 0: something does again."""

    seconds: Annotated[float, Meta(ge=0, le=1e9)]


class Status(Message, frozen=True):
    """Answer to Query."""

    serial: Serial
    models: list[ModelStatus]
    memory: MemoryStatus
    queued: Count
    running: Count
    kv: KvStatus = msgspec.field(default_factory=KvStatus)
    npu: NpuStatus | None = None  # None: there is none
    computed: ComputeStatus = msgspec.field(default_factory=ComputeStatus)


ToSecure = (
    Hello
    | Generate
    | Embed
    | Convert
    | Sealed
    | Warm
    | Try
    | Cancel
    | Recall
    | Pin
    | Configure
    | Grant
    | Spare
    | Query
    | Attest
    | Shutdown
)
ToNormal = (
    Welcome
    | NeedMemory
    | WantSpare
    | Returned
    | Computing
    | Standstill
    | Started
    | Prefilled
    | Delta
    | Embedded
    | Converted
    | SealedPart
    | Finished
    | Failed
    | Recalled
    | Status
    | Attested
)
