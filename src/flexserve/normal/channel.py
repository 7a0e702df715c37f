"""The normal world's end of the world channel.

One Unix stream socket to the secure process. `open_channel` shakes hands; after that one task
reads and hands every message to whom it concerns, by request or serial number. The secure world
is not trusted to be well-behaved: whatever arrives out of order, unasked or malformed closes the
channel, and every request in flight fails with the same PeerError.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from flexserve.errors import CallerError, FlexServeError, PeerError, QueueFullError
from flexserve.normal.answer import Answer, AnswerMessage, Observer
from flexserve.normal.questions import A, Questions, Told
from flexserve.protocol.answers import Converted, Delta, Embedded, Failed, Finished, Prefilled, Started
from flexserve.protocol.evidence import Attest, Attested
from flexserve.protocol.failures import revive
from flexserve.protocol.framing import FrameDecoder, encode
from flexserve.protocol.memory import Grant, NeedMemory, Pin, Recall, Recalled, Returned, Spare, WantSpare
from flexserve.protocol.messages import (
    PROTOCOL_VERSION,
    Computing,
    Configure,
    Hello,
    Query,
    Shutdown,
    Standstill,
    Status,
    ToNormal,
    Welcome,
)
from flexserve.protocol.model_options import ModelOptions
from flexserve.protocol.prompts import Entry, Prompt, Source
from flexserve.protocol.requests import Cancel, Convert, Embed, Generate, Terms, Try, Warm
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.sealed_messages import Sealed, SealedPart
from flexserve.protocol.sealed_request import header_of

MAX_REQUESTS = 1024  # in flight at once, the cancelled ones that the secure world still owes an end included
MAX_ATTESTATIONS = 32  # questions of clients: the first takes a second, and more ask meanwhile
MAX_UNSENT = 32 << 20  # bytes the secure world may leave unread before it counts as hung
MEASURE_TIMEOUT = 60.0  # seconds for an attestation: the first one reads all that the world consists of
ANSWER_TIMEOUT = 10.0  # seconds; a healthy secure world answers a query between two slices
_READ_SIZE = 256 << 10
_USUAL = Terms()


class MemoryCounter(Protocol):
    """Who answers the secure world's demands for memory (normal.broker.Broker)."""

    def need(self, message: NeedMemory) -> Grant:
        """Decide at once how much is granted. Must not raise."""

    def spare(self, message: WantSpare) -> Spare:
        """Say at once how much nobody needs. Must not raise."""

    def returned(self, message: Returned) -> None:
        """Note memory that came back unasked. Raises PeerError when more came than went."""

    def recalled(self, message: Recalled) -> None:
        """Note memory that came back on demand. Raises PeerError when more came than went."""


class WorldChannel:
    """An open channel, after the handshake. All methods belong to one event loop.

    `welcome` is what the secure world said of itself. `closed` is set once the channel is dead,
    and `error` then says why.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        decoder: FrameDecoder[Any],
        welcome: Welcome,
    ) -> None:
        self.welcome = welcome
        self.closed = asyncio.Event()
        self.error: PeerError | None = None
        self.still = 0.0  # seconds for which the engine had not moved when the secure world last told
        self.computing = ""  # the model that is opened or computes now, by the secure world's word
        self._reader = reader
        self._writer = writer
        self._decoder = decoder
        self._numbers = itertools.count(1)
        self.answered: set[str] = set()  # models that computed an answer to its end
        self._answers: dict[int, Answer] = {}
        # The models of requests in flight, and whether they compute; of a dead channel, at its end.
        self._asked: dict[int, tuple[str, bool]] = {}
        self._questions = Questions()
        self._memory: MemoryCounter | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, memory: MemoryCounter, backlog: list[Any]) -> None:
        """Begin to read; `backlog` holds messages that arrived together with the Welcome."""
        self._memory = memory
        self._task = asyncio.create_task(self._read(backlog), name="world-channel")

    @property
    def busy(self) -> set[str]:
        """The models that have requests in flight, or had when the channel died."""
        return {model for model, _ in self._asked.values()}

    async def generate(
        self,
        model: str,
        prompt: Prompt,
        sampling: Sampling,
        terms: Terms = _USUAL,
        observer: Observer | None = None,
    ) -> Answer:
        """Send a request for text and return its answer to come; see `_send`."""
        fields = msgspec.structs.asdict(terms)
        return await self._send(Generate(next(self._numbers), model, prompt, sampling, **fields), observer)

    async def embed(
        self,
        model: str,
        texts: Sequence[Entry],
        terms: Terms = _USUAL,
        observer: Observer | None = None,
        query: str | None = None,
    ) -> Answer:
        """Send a request for vectors, or ranks, and return its answer to come; see `_send`."""
        fields = msgspec.structs.asdict(terms)
        del fields["reuse"]  # there is no KV to use again
        return await self._send(Embed(next(self._numbers), model, list(texts), query, **fields), observer)

    async def convert(self, model: str, source: Source, keep_alive: float | None = None) -> Answer:
        """Send what is to be converted and return the answer to come; see `_send`."""
        return await self._send(Convert(next(self._numbers), model, source, keep_alive), None)

    async def sealed(self, body: bytes) -> Answer:
        """Send a sealed request on and return its answer to come; see `_send`."""
        return await self._send(Sealed(next(self._numbers), body), None)

    async def warm(self, model: str, keep_alive: float | None) -> Answer:
        """Have all weights of a model brought in; return the answer to come; see `_send`."""
        return await self._send(Warm(next(self._numbers), model, keep_alive), None)

    async def try_model(self, model: str) -> Answer:
        """Have a model opened, computed with and recorded; return the answer to come; see `_send`."""
        return await self._send(Try(next(self._numbers), model), None)

    async def _send(
        self, message: Generate | Embed | Convert | Sealed | Warm | Try, observer: Observer | None
    ) -> Answer:
        """Send a request and return its answer to come. Use the answer as a context manager.

        `observer` hears of everything once the request is on its way. Raises CallerError for a
        request that the protocol has no room for, QueueFullError when too many are in flight,
        PeerError when the channel is dead.
        """
        if len(self._answers) >= MAX_REQUESTS:
            raise QueueFullError("Too many requests are in flight.", hint="Retry in a moment.")
        frame = _checked(message)
        self._write(frame)
        answer = Answer(message.request, cancel=self._cancel, observer=observer)
        self._answers[message.request] = answer
        # Of a sealed request this side knows the model, and not whether it computes: most do.
        model = header_of(message.body).model if isinstance(message, Sealed) else message.model
        self._asked[message.request] = model, isinstance(message, Generate | Embed | Sealed)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self._writer.drain()
        except (TimeoutError, OSError):
            answer.abandon()
            raise self._fail("it does not read what it is sent") from None
        except asyncio.CancelledError:
            answer.abandon()
            raise
        return answer

    async def query(self, *, timeout: float = ANSWER_TIMEOUT) -> Status:
        """Return the secure world's status. Raises PeerError when none comes in `timeout` seconds."""
        serial = next(self._numbers)
        return await self._ask(Query(serial), serial, Status, timeout)

    async def recall(
        self,
        demand: int | None,
        *,
        deadline: float,
        timeout: float,
        gentle: bool = False,
        reason: str = "",
    ) -> Recalled:
        """Ask for `demand` bytes (None: all it can spare) within `deadline` seconds; `reason`: for people.

        `gentle`: only for what neither a running request nor a pin needs. Raises PeerError when no
        answer comes within `timeout` seconds.
        """
        serial = next(self._numbers)
        question = Recall(serial, demand, deadline * 1000, gentle, reason)
        return await self._ask(question, serial, Recalled, timeout)

    async def attest(self, nonce: bytes) -> Attested:
        """Return who the secure world says that it is.

        Raises its reason not to say it; QueueFullError when many ask; PeerError when no answer comes.
        """
        if self._questions.count(Attested) >= MAX_ATTESTATIONS:
            raise QueueFullError("Too many ask for attestation.", hint="Retry in a moment.")
        serial = next(self._numbers)
        said = await self._ask(Attest(serial, nonce), serial, Attested, MEASURE_TIMEOUT)
        if said.failure is not None:
            raise revive(said.failure)
        return said

    def pin(self, models: Sequence[str]) -> None:
        """Name the models whose weights are to be kept, all of them. Raises PeerError on a dead channel."""
        self._write(encode(Pin(list(models))))

    def configure(self, models: Mapping[str, ModelOptions]) -> None:
        """Say how models are served that are not served as usual. Raises PeerError on a dead channel."""
        self._write(encode(Configure(dict(models))))

    def shut_down(self, *, drain: float) -> None:
        """Tell the secure world to finish within `drain` seconds and exit. Safe on a dead channel."""
        with contextlib.suppress(PeerError):
            self._write(encode(Shutdown(drain * 1000)))

    async def close(self) -> None:
        """Close from this side; requests in flight fail. Always safe, also twice."""
        self._fail("it was closed")
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    # ---- sending

    def _write(self, frame: bytes) -> None:
        if self.error is not None:
            raise PeerError(self.error.message, hint=self.error.hint)
        if self._writer.transport.get_write_buffer_size() > MAX_UNSENT:
            raise self._fail("it does not read what it is sent")
        self._writer.write(frame)

    def _cancel(self, request: int) -> None:
        with contextlib.suppress(PeerError):
            self._write(encode(Cancel(request)))

    async def _ask(self, message: Query | Recall | Attest, serial: int, kind: type[A], timeout: float) -> A:
        if self._questions.full:
            raise self._fail("it leaves questions unanswered")
        self._write(encode(message))
        return await self._questions.answer(serial, kind, timeout)

    # ---- receiving

    async def _read(self, backlog: list[Any]) -> None:
        try:
            for message in backlog:
                self._dispatch(message)
            while data := await self._reader.read(_READ_SIZE):
                for message in self._decoder.feed(data):
                    self._dispatch(message)
            self._decoder.end()
            self._fail("it went away")
        except PeerError as error:
            self._fail(error)
        except OSError as error:
            self._fail(f"it went away ({error.strerror})")
        finally:
            self._fail("its channel is no longer read")  # whatever ended the task: nobody may wait for ever

    def _dispatch(self, message: Any) -> None:
        match message:
            case Started() | Prefilled() | Delta() | Embedded() | Converted():
                self._deliver(message)
            case SealedPart() | Finished() | Failed():
                self._deliver(message)
            case Status() | Recalled() | Attested():
                self._settle(message)
            case NeedMemory():
                assert self._memory is not None
                self._write(encode(self._memory.need(message)))
            case WantSpare():
                assert self._memory is not None
                self._write(encode(self._memory.spare(message)))
            case Computing():
                self.computing = message.model
            case Standstill():
                self.still = message.seconds
            case Returned():
                assert self._memory is not None
                self._memory.returned(message)
            case _:
                raise PeerError(f"The secure world sent {type(message).__name__} out of order.")

    def _deliver(self, message: AnswerMessage | Failed) -> None:
        answer = self._answers.get(message.request)
        if answer is None:
            raise PeerError(f"The secure world sent {type(message).__name__} for a request it has not.")
        answer.push(message)
        if answer.ended:
            del self._answers[message.request]
            model, computes = self._asked.pop(message.request)
            if computes and not isinstance(message, Failed):
                self.answered.add(model)

    def _settle(self, message: Told) -> None:
        future = self._questions.take(message)
        if isinstance(message, Recalled):
            assert self._memory is not None
            self._memory.recalled(message)  # counted even when nobody waits for the answer any more
        if not future.done():
            future.set_result(message)

    def _fail(self, why: str | PeerError) -> PeerError:
        """Close the channel for `why`, fail all that waits on it, and return the error. Idempotent."""
        if self.error is None:
            if isinstance(why, str):
                why = PeerError(
                    f"The secure world is gone: {why}.", hint="It is being restarted; retry in a moment."
                )
            self.error = why
            self._writer.transport.abort()
            for answer in self._answers.values():
                answer.fail(PeerError(why.message, hint=why.hint))
            self._questions.fail(why)
            self._answers.clear()
            self.closed.set()
        return self.error


async def open_channel(sock: socket.socket, memory: MemoryCounter, *, timeout: float) -> WorldChannel:
    """Shake hands over `sock` and return the channel, which owns the socket from then on.

    Raises PeerError when the other side speaks another version, something else, or nothing
    within `timeout` seconds; the socket is closed then.
    """
    sock.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=sock)
    decoder: FrameDecoder[Any] = FrameDecoder(ToNormal)
    try:
        async with asyncio.timeout(timeout):
            writer.write(encode(Hello(PROTOCOL_VERSION)))
            first, *backlog = await _first_messages(reader, decoder)
        _check_welcome(first)
    except (TimeoutError, FlexServeError, OSError, asyncio.CancelledError) as error:
        writer.transport.abort()
        if isinstance(error, TimeoutError):
            raise PeerError(
                f"The secure world did not answer within {timeout:.0f} s.", hint="See its messages above."
            ) from None
        if isinstance(error, OSError):
            raise PeerError(
                "The secure world went away while starting.", hint="See its messages above."
            ) from None
        raise
    channel = WorldChannel(reader, writer, decoder, first)
    channel.start(memory, backlog)
    return channel


async def _first_messages(reader: asyncio.StreamReader, decoder: FrameDecoder[Any]) -> list[Any]:
    while data := await reader.read(_READ_SIZE):
        if messages := decoder.feed(data):
            return messages
    decoder.end()
    raise PeerError("The secure world went away while starting.", hint="See its messages above.")


def _check_welcome(message: Any) -> None:
    if not isinstance(message, Welcome):
        raise PeerError(f"The secure world began with {type(message).__name__} instead of Welcome.")
    if message.version != PROTOCOL_VERSION:
        raise PeerError(
            f"The secure world speaks protocol {message.version}, this one {PROTOCOL_VERSION}.",
            hint="Install one version of flexserve for both worlds.",
        )


def _checked(message: Generate | Embed | Convert | Sealed | Warm | Try) -> bytes:
    """Return the frame of `message`, which decodes at the other end, or raise CallerError.

    The encoder does not check bounds; the secure world does, and would take a request beyond
    them for a broken peer. One caller's mistake must not cost the others their channel.
    """
    try:
        body = msgspec.msgpack.encode(message)
        msgspec.msgpack.decode(body, type=type(message))
        return encode(message)
    except UnicodeEncodeError:
        raise CallerError("The prompt is not valid Unicode text.", hint="Send it as UTF-8.") from None
    except msgspec.ValidationError as error:
        # Names types, bounds and paths, never values.
        raise CallerError(f"The request is out of bounds: {error}.", hint="Make it shorter.") from None
    except PeerError:
        raise CallerError("The prompt is too long.", hint="Make it shorter.") from None
