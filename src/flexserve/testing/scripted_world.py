"""A secure world that follows a script: no engine, no memory, every behaviour on demand.

It speaks the real protocol over the real socket, so the normal world cannot tell. Each model of
its script is one behaviour (a slow one, one that fails, one that breaks the protocol), and a
request picks the behaviour by naming the model. Run it in the test's own event loop
(`ScriptedWorld`), or as a process that can be killed:

    python -m flexserve.testing.scripted_world --channel-fd N --script JSON
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import struct
import sys
from types import UnionType
from typing import Any

import msgspec

from flexserve.attestation.measurement import Measurement
from flexserve.attestation.token import AttestedModel
from flexserve.errors import Blame
from flexserve.protocol.answers import (
    Choice,
    Converted,
    Delta,
    Embedded,
    Failed,
    Finished,
    Prefilled,
    Started,
    Timings,
    TokenLogprob,
    Usage,
)
from flexserve.protocol.evidence import Attest, Attested
from flexserve.protocol.framing import FrameDecoder, encode
from flexserve.protocol.launch import EXIT_CUT_OFF
from flexserve.protocol.memory import Grant, NeedMemory, Recall, Recalled, Returned
from flexserve.protocol.messages import (
    Computing,
    Hello,
    Query,
    Shutdown,
    Standstill,
    Status,
    ToSecure,
    Welcome,
)
from flexserve.protocol.notation import Notation
from flexserve.protocol.prompts import AskTemplate, ChatPrompt, ToTokens
from flexserve.protocol.requests import Cancel, Convert, Embed, Generate, Warm
from flexserve.protocol.sealed_messages import Sealed
from flexserve.protocol.statuses import (
    Abilities,
    ComputeStatus,
    Description,
    Failure,
    MemoryStatus,
    ModelStatus,
)
from flexserve.testing.script import Behaviour, Fault, Script
from flexserve.trusted.identity.identity import Facts, Identity
from flexserve.trusted.sessions.clock import steady_clock
from flexserve.trusted.sessions.receipts import Receipts
from flexserve.trusted.sessions.session import Session
from flexserve.trusted.sessions.sessions import Sessions

CHUNK = 2 << 20  # bytes
PROMPT_TOKENS = 7  # of every prompt
CACHED_TOKENS = 3  # of those
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
# Of every model.
ABILITIES = Abilities(
    text=True,
    vectors=True,
    encoder=False,
    causal=True,
    window=0,
    recurrent=False,
    template=True,
    tools="tagged",
    ranks=True,
)
DESCRIPTION = Description("ab" * 32, 1000, 1_700_000_000, "llama", 8_030_261_248, "Q4_0", 8192, 4096, 4)
COMPUTED = ComputeStatus(graphs=20, requests=30, checks=2)
# Who it is: a root and a part of its own.
IDENTITY = Identity(b"s" * 32, lambda: Measurement({"script": b"s" * 64}, 0.0), 1.0, {"program": "scripted"})
FACTS = Facts("script", {"memory": "none"}, [AttestedModel(DESCRIPTION.digest)])


class ScriptedWorld:
    """One end of a channel, following `script`. `received` holds every message in order."""

    def __init__(self, sock: socket.socket, script: Script) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._script = script
        self._requests: dict[int, asyncio.Task[None]] = {}
        self._sealed: dict[int, Session] = {}
        clock = steady_clock()
        receipts = Receipts(IDENTITY.sign_receipt, lambda _model: (DESCRIPTION.digest, ""), "none", clock)
        self._sessions = Sessions(IDENTITY.unseal, self._say_openly, clock, receipts)
        self._grants: dict[int, asyncio.Future[int]] = {}
        self._serials = iter(range(1, 1 << 53))
        self._writer: asyncio.StreamWriter | None = None
        self._held = 0  # bytes granted and not returned
        self.received: list[Any] = []
        self.news = asyncio.Event()  # set at every message received; a test clears it

    async def run(self) -> None:
        """Serve until the other end closes the channel or asks for a shutdown."""
        reader, self._writer = await asyncio.open_connection(sock=self._sock)
        decoder: FrameDecoder[Any] = FrameDecoder(ToSecure)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                for message in decoder.feed(data):
                    self.received.append(message)
                    self.news.set()
                    if isinstance(message, Shutdown):
                        await self._drain(message)
                        return
                    self._handle(message)
        for task in self._requests.values():
            task.cancel()

    def every(self, kind: type[Any] | UnionType) -> list[Any]:
        """Return the messages of a kind, or of a union of kinds, that it has received, in order."""
        return [message for message in self.received if isinstance(message, kind)]

    def last(self, kind: type[Any] | UnionType) -> Any:
        """Return the newest of them. IndexError when there is none."""
        return self.every(kind)[-1]

    def say(self, message: msgspec.Struct) -> None:
        """Send any message, in or out of order; sealed, if its request was."""
        session = self._sealed.get(getattr(message, "request", 0))
        if session is None or isinstance(message, Finished | Failed):
            self._sessions.send(message)
        else:
            session.take(message)

    def _say_openly(self, message: msgspec.Struct) -> None:
        self.say_bytes(encode(message))

    def say_bytes(self, data: bytes) -> None:
        """Send any bytes at all."""
        assert self._writer is not None
        self._writer.write(data)

    def hang_up(self) -> None:
        """Close the socket without a word."""
        if self._writer is not None:
            self._writer.transport.abort()
        else:
            self._sock.close()

    async def _drain(self, message: Shutdown) -> None:
        if self._requests:
            await asyncio.wait(self._requests.values(), timeout=message.drain / 1000)
        for request in list(self._requests):
            self._cancel(request)
        assert self._writer is not None
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()
        self._writer.close()

    def _handle(self, message: Any) -> None:
        match message:
            case Hello():
                self.say(self._welcome())
            case Generate() | Embed() | Convert() | Warm():
                self._accept(message)
            case Sealed():
                self._open(message)
            case Cancel():
                self._cancel(message.request)
            case Query():
                self.say(self._status(message.serial))
            case Attest():
                said = IDENTITY.attest(message.nonce, FACTS)
                self.say(Attested(message.serial, said.chain, said.token))
            case Recall():
                self.say(self._recalled(message))
            case Grant():
                self._grants.pop(message.serial).set_result(message.size)

    def _open(self, message: Sealed) -> None:
        session = self._sessions.open(message)
        if session is None:
            self._sessions.tick()  # the refusal leaves
        else:
            self._sealed[session.number] = session
            self._handle(session.asked)

    def _accept(self, message: Generate | Embed | Convert | Warm) -> None:
        behaviour = self._script.models.get(message.model)
        if behaviour is None:
            self._refuse(message.request, "model_not_found", "There is no such model.")
        elif len(self._requests) >= self._script.max_queue:
            self._refuse(message.request, "queue_full", "The queue is full.")
        else:
            task = asyncio.create_task(self._work(message, behaviour))
            self._requests[message.request] = task
            task.add_done_callback(lambda _: self._requests.pop(message.request, None))

    async def _work(self, message: Generate | Embed | Convert | Warm, behaviour: Behaviour) -> None:
        match message:
            case Generate():
                await self._generate(message, behaviour)
            case Embed():
                await self._embed(message, behaviour)
            case Convert():
                self._convert(message)
            case Warm():
                self.say(Started(message.request, 0))
                self.say(Finished(message.request, "stop", Usage(0, 0), Timings()))

    def _refuse(self, request: int, code: str, text: str) -> None:
        self.say(Failed(request, Failure(Blame.CALLER.value, code, text, "Ask differently.")))

    def _cancel(self, request: int) -> None:
        task = self._requests.pop(request, None)
        if task is not None:
            task.cancel()
            self._refuse(request, "cancelled", "The request was cancelled.")

    async def _generate(self, message: Generate, behaviour: Behaviour) -> None:
        await asyncio.sleep(behaviour.queue_delay)
        request = message.request
        self.say(Computing(message.model))
        notation = Notation() if isinstance(message.prompt, ChatPrompt) else None
        self.say(Started(request, PROMPT_TOKENS, notation, cached_tokens=CACHED_TOKENS))
        granted = await self._acquire(behaviour.memory)
        await asyncio.sleep(behaviour.prefill_delay)
        if message.progress:
            self.say(Prefilled(request, CACHED_TOKENS + 1))
            self.say(Prefilled(request, PROMPT_TOKENS))
        tokens = behaviour.tokens[: message.sampling.max_tokens]
        for token in tokens:
            self.say(Delta(request, token, 1, _choices(token, message.sampling.logprobs), ids=[7]))
            await asyncio.sleep(behaviour.token_delay)
        await self._misbehave(request, behaviour.fault)
        if granted:
            self._held -= granted
            self.say(Returned(granted))
        reason = "length" if len(tokens) < len(behaviour.tokens) else behaviour.reason
        usage = Usage(PROMPT_TOKENS, len(tokens), CACHED_TOKENS)
        self.say(Finished(request, reason, usage, Timings(queue=1.5, prefill=2.5, decode=3.5, ttft=4.0)))

    async def _embed(self, message: Embed, behaviour: Behaviour) -> None:
        await asyncio.sleep(behaviour.queue_delay)
        self.say(Started(message.request, PROMPT_TOKENS))
        for entry in message.texts:
            await asyncio.sleep(behaviour.prefill_delay)
            text = entry if isinstance(entry, str) else "".join(map(str, entry))
            vector = vector_of(text) if message.query is None else rank_of(message.query, text)
            self.say(Embedded(message.request, [vector]))
        await self._misbehave(message.request, behaviour.fault)
        self.say(Finished(message.request, "stop", Usage(PROMPT_TOKENS, 0), Timings(prefill=2.5)))

    def _convert(self, message: Convert) -> None:
        """Convert as if each character were a token: its code."""
        source, pieces = message.source, []
        if isinstance(source, ChatPrompt):
            text = "".join(f"{turn.role}: {turn.content}\n" for turn in source.messages)
        elif isinstance(source, ToTokens):
            text = source.text
            pieces = [char.encode() for char in text] if source.pieces else []
        elif isinstance(source, AskTemplate):
            text, pieces = TEMPLATE, [b"<s>", b"", b"<tool>"]
        else:
            text = "".join(map(chr, source.tokens))
        tokens = [ord(char) for char in text]
        self.say(Started(message.request, len(tokens)))
        self.say(Converted(message.request, text, tokens, pieces))
        self.say(Finished(message.request, "stop", Usage(len(tokens), 0), Timings()))

    async def _acquire(self, size: int) -> int:
        if not size:
            return 0
        serial = next(self._serials)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._grants[serial] = future
        self.say(NeedMemory(serial, size, 0))
        granted = await future
        self._held += granted
        return granted

    async def _misbehave(self, request: int, fault: Fault) -> None:
        match fault:
            case Fault.FAIL:
                bad = Failure(
                    Blame.STORED_DATA.value, "stored_data_bad", "A chunk is forged.", "Seal it again."
                )
                self.say(Failed(request, bad))
                await asyncio.sleep(0)
                raise asyncio.CancelledError
            case Fault.DIE:
                os._exit(7)
            case Fault.CUT_OFF:
                os._exit(EXIT_CUT_OFF)
            case Fault.GARBAGE:
                self.say_bytes(b"\x05\x00\x00\x00\xc1\xc1\xc1\xc1\xc1")
            case Fault.OVERSIZED:
                self.say_bytes(b"\xff\xff\xff\xff")
            case Fault.UNASKED:
                self.say(Delta(1 << 40, "surprise", 1))
            case Fault.REPEATED:
                self.say(Started(request, PROMPT_TOKENS))
            case Fault.STILL:
                self.say(Standstill(120.0))
                await asyncio.Event().wait()
            case Fault.SILENCE:
                await asyncio.Event().wait()
            case Fault.NONE:
                pass

    def _welcome(self) -> Welcome:
        summary = "A scripted world: nothing is protected, nothing is computed."
        return Welcome(self._script.version, os.getpid(), "scripted", False, summary, "script", CHUNK)

    def _status(self, serial: int) -> Status:
        models = [
            ModelStatus(
                *(name, "partial", *behaviour.sizes),
                running=bool(self._requests),
                abilities=ABILITIES,
                description=DESCRIPTION,
                leaves=250_000,
                gone="made way for slow",
            )
            for name, behaviour in self._script.models.items()
        ]
        memory = MemoryStatus(CHUNK, 0, self._held, 0, self._held, self._held + 1)
        return Status(serial, models, memory, queued=0, running=len(self._requests), computed=COMPUTED)

    def _recalled(self, message: Recall) -> Recalled:
        size = self._held if message.demand is None else min(self._held, message.demand)
        before, self._held = self._held, self._held - size
        return Recalled(message.serial, size, before, self._held, 1.0, 0, ["scratch of tiny"])


def vector_of(text: str) -> bytes:
    """Return the vector that the scripted world makes of `text`: of length 1, by how long the text is."""
    share = min(len(text), 8) / 8
    return struct.pack("<2f", share, (1 - share * share) ** 0.5)


def rank_of(query: str, text: str) -> bytes:
    """Return the rank that the scripted world gives to `text`: how many of its words the query has."""
    return struct.pack("<f", len(set(query.split()) & set(text.split())))


def _choices(token: str, logprobs: int | None) -> list[Choice]:
    if logprobs is None:
        return []
    others = [TokenLogprob(f"{token}{rank}".encode(), -1.0 - rank) for rank in range(logprobs)]
    return [Choice(TokenLogprob(token.encode(), -0.5), others)]


def main() -> int:
    """Run a scripted world as a process. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="scripted_world")
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--script", required=True, help="a Script as JSON")
    arguments = parser.parse_args()
    script = msgspec.json.decode(arguments.script, type=Script)
    if script.dies_at_start:
        sys.stderr.write("the script says to die\n")
        return 9
    if script.start_failure is not None:
        sys.stderr.write(msgspec.json.encode(script.start_failure).decode() + "\n")
        return 3
    asyncio.run(ScriptedWorld(socket.socket(fileno=arguments.channel_fd), script).run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
