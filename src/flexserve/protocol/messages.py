"""Everything one world can say to the other. Versioned, typed, bounded.

Both directions are tagged unions of frozen structs; an unknown tag, an unknown field, a wrong
type or a value out of bounds is a protocol error (PeerError), never anything else. The first
message each way is the handshake: `Hello` from the normal world, `Welcome` from the secure one.

Sizes are bytes, durations are milliseconds unless the name says otherwise.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from flexserve.protocol.bounds import (
    MAX_CONFIGURED,
    MAX_MESSAGES,
    MAX_PINS,
    MAX_SEALED,
    MAX_STOPS,
    MAX_TEXTS,
    MAX_TOKENS,
    MAX_TOOL_CALLS,
    Certificate,
    Count,
    KeepAlive,
    Label,
    Millis,
    Name,
    Nonce,
    Schema,
    Serial,
    Short,
    Struct,
    Text,
)
from flexserve.protocol.model_options import ModelOptions
from flexserve.protocol.notation import Mark, Notation
from flexserve.protocol.sampling import Sampling, TokenId
from flexserve.protocol.statuses import Failure, KvStatus, MemoryStatus, ModelStatus, NpuStatus

PROTOCOL_VERSION = 20
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
}


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    pass


# ---- values ------------------------------------------------------------------------------


class ToolCall(Struct, frozen=True):
    """A call of a tool that the model made: `arguments` is a JSON object as text."""

    id: Label
    name: Name
    arguments: Text


class ChatMessage(Struct, frozen=True):
    """One turn of a conversation.

    `tool_calls` and `thought` are of an assistant's turn; `tool_call_id` and `name` say what a tool's turn
    answers.
    """

    role: Annotated[str, Meta(min_length=1, max_length=32)]
    content: Text
    tool_calls: Annotated[list[ToolCall], Meta(max_length=MAX_TOOL_CALLS)] = msgspec.field(
        default_factory=list
    )
    tool_call_id: Label = ""
    name: Label = ""
    thought: Text = ""


class ChatPrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="chat"):
    """A conversation; the secure world renders the model's own chat template over it.

    `tools` is a JSON array of OpenAI's tool objects. `must_call` names the tools of which the model
    has to call one instead of answering; empty: it decides. `values` is a JSON object of variables that
    the template gets. `thinking`: whether the model is to think first; None: as its template has it.
    `thought_tokens`: after so many tokens of a thought its end is forced; None: never. Of an assistant's
    turn at the end the answer is the rest.
    """

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    tools: Schema | None = None
    must_call: Annotated[list[Name], Meta(max_length=MAX_TOOL_CALLS)] = msgspec.field(default_factory=list)
    values: Schema | None = None
    thinking: bool | None = None
    thought_tokens: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None


class TextPrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="text"):
    """Raw text to continue."""

    text: Text


class Snippet(Struct, frozen=True):
    """Another text of the project that a gap belongs to; `name` is its file's."""

    name: Short
    text: Text


class InfillPrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="infill"):
    """A gap in a text, for models that were trained to fill one: what is before it and behind it.

    `start` is how the filling begins.
    """

    prefix: Text
    suffix: Text
    start: Text = ""
    snippets: Annotated[list[Snippet], Meta(max_length=MAX_MESSAGES)] = msgspec.field(default_factory=list)


class ToTokens(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="to_tokens"):
    """A text to turn into tokens. `start`: with the one that begins a sequence, where the model has one.

    `special`: text like "<|im_end|>" means the control token. `pieces`: the bytes of each are wanted, too.
    """

    text: Text
    start: bool = False
    special: bool = True
    pieces: bool = False


class ToText(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="to_text"):
    """Tokens to turn into their text."""

    tokens: Annotated[list[Count], Meta(max_length=MAX_TOKENS)]


class AskTemplate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="template"):
    """The model's own chat template is wanted as text; "" where it has none.

    Two pieces are the names of the tokens that begin and end a text, empty where there is none.
    """


Tokens = Annotated[list[TokenId | Text], Meta(min_length=1, max_length=MAX_TOKENS)]  # texts become tokens
Entry = Text | Tokens  # what is to be a vector


class TokenPrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tokens"):
    """Tokens to continue, as numbers; texts among them are cut into tokens."""

    tokens: Tokens


Prompt = ChatPrompt | TextPrompt | TokenPrompt | InfillPrompt
Source = ToTokens | ToText | ChatPrompt | AskTemplate  # of a conversion


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


# ---- normal world to secure world -----------------------------------------------------------


class Hello(_Message, frozen=True):
    """First message of the normal world."""

    version: int


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
    keep_alive: KeepAlive | None = None  # seconds; None: as the server is configured


class Generate(_Message, Terms, frozen=True):
    """Run a prompt. Answered by Started, Delta… and Finished, or by Failed."""

    request: Serial
    model: Name
    prompt: Prompt
    sampling: Sampling


class Embed(_Message, Terms, frozen=True):
    """Turn each text into a vector. Answered by Started, Embedded… and Finished, or by Failed.

    A text may be given as tokens. With a `query`, each text is ranked instead: its vector has one number,
    the higher the better it answers the query.
    """

    request: Serial
    model: Name
    texts: Annotated[list[Entry], Meta(min_length=1, max_length=MAX_TEXTS)]
    query: Text | None = None


class Convert(_Message, frozen=True):
    """Turn a text into tokens, tokens into text, or a conversation into what the model gets of it; or
    show the template that does the last.

    Nothing is computed. Answered by Started, Converted and Finished, or by Failed.
    """

    request: Serial
    model: Name
    source: Source
    keep_alive: KeepAlive | None = None  # seconds


class Sealed(_Message, frozen=True):
    """A request that only the secure world can read (protocol.sealed_request).

    Answered by SealedPart…. One that cannot be opened gets the same Failed, whatever the reason.
    """

    request: Serial
    body: Annotated[bytes, Meta(max_length=MAX_SEALED)]


class Try(_Message, frozen=True):
    """Open a model, compute once with it, and record what it can do. Answered as Warm is."""

    request: Serial
    model: Name


class Warm(_Message, frozen=True):
    """Bring all of a model's weights into memory. Answered by Started and Finished, or by Failed."""

    request: Serial
    model: Name
    keep_alive: KeepAlive | None = None  # seconds


class Cancel(_Message, frozen=True):
    """The client is gone; stop. Answered by Failed(code="cancelled") unless already ended."""

    request: Serial


class Recall(_Message, frozen=True):
    """Give memory back. `demand` None asks for all that is not in use by a running request.

    `gentle`: at most `demand`, and only what neither a running request nor a pin needs.
    """

    serial: Serial
    demand: Count | None
    deadline: Millis
    gentle: bool = False


class Pin(_Message, frozen=True):
    """Keep the weights of these models, and of no others, until nothing else meets a definite demand."""

    models: Annotated[list[Name], Meta(max_length=MAX_PINS)]


class Configure(_Message, frozen=True):
    """Serve these models in these ways, and all others as usual. What is open changes when it opens next."""

    models: Annotated[dict[Name, ModelOptions], Meta(max_length=MAX_CONFIGURED)]


class Grant(_Message, frozen=True):
    """Answer to NeedMemory: `size` bytes more are yours (0: refused, with the reason)."""

    serial: Serial
    size: Count
    reason: Short = ""


class Spare(_Message, frozen=True):
    """Answer to WantSpare: so many bytes may be asked for now. Nothing is granted by it."""

    serial: Serial
    size: Count


class Query(_Message, frozen=True):
    """Ask for Status. Never wakes a model and never resets an idle timer."""

    serial: Serial


class Attest(_Message, frozen=True):
    """Ask who the secure world is; `nonce` is the client's. Answered by Attested."""

    serial: Serial
    nonce: Nonce


class Shutdown(_Message, frozen=True):
    """Finish or stop what runs within `drain` milliseconds, give all memory back, exit."""

    drain: Millis


# ---- secure world to normal world -----------------------------------------------------------


class Welcome(_Message, frozen=True):
    """First message of the secure world."""

    version: int
    pid: Count
    protection: Short  # Protection.name
    protected: bool
    summary: Short
    engine: Short  # llama.cpp build and CPU features
    chunk: Count


class NeedMemory(_Message, frozen=True):
    """Ask for a grant. Below `minimum` the request that needs it cannot make progress."""

    serial: Serial
    size: Count
    minimum: Count


class WantSpare(_Message, frozen=True):
    """Ask how much memory nobody needs: weights could be brought back for which no request asks yet.

    `reason`: of which model, and why, for people.
    """

    serial: Serial
    size: Count
    reason: Short


class Returned(_Message, frozen=True):
    """Memory went back unasked (an idle model's scratch, a closed model)."""

    size: Count


class Computing(_Message, frozen=True):
    """From now on it is `model` that is opened or computes ("": none). Tells whose a death is."""

    model: Annotated[str, Meta(max_length=128)]


class Standstill(_Message, frozen=True):
    """Nothing has moved in the engine's turn for so many seconds; 0: something does again."""

    seconds: Annotated[float, Meta(ge=0, le=1e9)]


class Started(_Message, frozen=True):
    """The request left the queue.

    `notation`: how a conversation's answer is written (None: the answer is text). `begun`: what of it the
    prompt has already, as the mark that begins a thought.
    """

    request: Serial
    prompt_tokens: Count
    notation: Notation | None = None
    begun: Mark = ""


class Delta(_Message, frozen=True):
    """More text; `choices` is filled when logprobs were asked for. `tokens` may be 0 for text
    that was held back while it could have been the start of a stop string. `stop`: which of the
    request's stop strings ended the text behind this. `ids`: the tokens."""

    request: Serial
    text: str
    tokens: Count
    choices: list[Choice] = msgspec.field(default_factory=list)
    stop: Annotated[int, Meta(ge=0, lt=MAX_STOPS)] | None = None
    ids: list[TokenId] = msgspec.field(default_factory=list)


class Embedded(_Message, frozen=True):
    """Vectors of the next texts, in order: little-endian float32, of length 1; or one number each."""

    request: Serial
    vectors: Annotated[list[bytes], Meta(max_length=MAX_TEXTS)]


class Converted(_Message, frozen=True):
    """What a Convert asked for; `pieces` are the bytes of the tokens, where they were wanted."""

    request: Serial
    text: str
    tokens: list[Count]
    pieces: list[bytes] = msgspec.field(default_factory=list)


class SealedPart(_Message, frozen=True):
    """More of a sealed answer (protocol.sealed_answer), for the client as it is. `last`: no more comes."""

    request: Serial
    data: Annotated[bytes, Meta(max_length=MAX_SEALED)]
    last: bool = False


class Finished(_Message, frozen=True):
    """The request ended well. `reason`: "stop" or "length". Policy reads it: nothing of the text is in it."""

    request: Serial
    reason: str
    usage: Usage
    timings: Timings
    shifted: bool = False  # the context was full, and older tokens went


class Failed(_Message, frozen=True):
    """The request ended in an error; no more comes for it."""

    request: Serial
    failure: Failure


class Recalled(_Message, frozen=True):
    """Answer to Recall: what really went back, by our table and by the OS's own count."""

    serial: Serial
    returned: Count  # bytes, by the ownership table
    os_before: Count  # bytes the OS counted as ours before …
    os_after: Count  # … and after
    elapsed: Millis
    protected: Count  # bytes kept because a running request is using them
    plan: list[Short]  # what was given up, in order, for people


class Status(_Message, frozen=True):
    """Answer to Query."""

    serial: Serial
    models: list[ModelStatus]
    memory: MemoryStatus
    queued: Count
    running: Count
    kv: KvStatus = msgspec.field(default_factory=KvStatus)
    npu: NpuStatus | None = None  # None: there is none


class Attested(_Message, frozen=True):
    """Answer to Attest: the root's key, the certificates of its layers, and a token (flexserve.attestation).

    `failure`: why there is none; the rest is empty then.
    """

    serial: Serial
    chain: Annotated[list[Certificate], Meta(max_length=8)]
    token: Certificate
    failure: Failure | None = None


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
