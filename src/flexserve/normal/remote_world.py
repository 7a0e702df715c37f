"""The secure world behind a server elsewhere: verified first, then asked by sealed requests only."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

import msgspec

from flexserve.errors import CallerError, FlexServeError, PeerError
from flexserve.normal.answer import Answer, Observer, cancelled
from flexserve.normal.api.envelope import request_id
from flexserve.normal.metrics import Metrics
from flexserve.normal.models_world import USUAL
from flexserve.normal.remote_server import RemoteServer
from flexserve.platforms.ports import Protection
from flexserve.protocol.answers import Converted
from flexserve.protocol.messages import Query, Status
from flexserve.protocol.prompts import AskTemplate, Entry, Prompt, Source, ToTokens
from flexserve.protocol.rendered import Rendered, cannot_seal, passed
from flexserve.protocol.requests import Convert, Embed, Generate, Terms, Warm
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.sealed_answer import Receipt
from flexserve.protocol.sealed_exchange import Exchange, SealedSecret, named_secret, sealed_secret
from flexserve.protocol.sealed_request import Asked, model_of, refusal
from flexserve.protocol.statuses import ModelStatus

NONCE = 32  # bytes
_AHEAD = 16  # secrets that are ready for requests to come, of each kind
_FRESH = 240_000  # milliseconds for which the secure world knows a secret for sure: it forgets it after more
_MARGIN = 60_000  # milliseconds before a key's end in which nothing is sealed to it any more


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """An attestation as it came, and the nonce that it answers, in hex."""

    chain: list[bytes]
    token: bytes
    nonce: str


@dataclasses.dataclass(frozen=True, slots=True)
class Trust:
    """A secure world that was verified: what to seal to, until when (milliseconds since 1970), and who it is.

    `shown` is for people and programs, as JSON has it: what was verified. `evidence`: what proves it.
    `renders`: whether it renders templates by itself.
    """

    public: bytes
    token_hash: bytes
    ends: int
    engine: str
    protection: Protection
    shown: dict[str, Any]
    evidence: Evidence
    renders: bool = True


class RenderedPrompt(Protocol):
    """A prompt for a secure world that renders none, and what its answer's messages are for who asked."""

    rendered: Rendered
    ended: bool  # the answer; whatever else comes is of no interest

    def take(self, message: Any) -> list[Any]:
        """Return what a message is for who asked."""


class Rendering(Protocol):
    """Renders prompts (tee_client.rendering)."""

    def prompt(self, asked: Generate, shape: Converted) -> RenderedPrompt:
        """Return the prompt of `asked`, by what the server says of its model. Takes a while."""


Verify = Callable[[list[bytes], bytes, bytes], Trust]  # (chain, token, nonce). Raises PeerError
Keep = Callable[[str, bytes, Trust], None]  # what becomes of a receipt: (request's name, receipt, by whom)


class RemoteWorld:
    """A ModelsWorld behind `server`. Nothing is sent before `verify` has found its secure world good.

    `keep` gets the receipt of each answer. One event loop. Whose KV is whose is decided by a secret of this
    object, so nobody else who uses the server shares any of it. `rounding`: of answers, see Generate.
    `rendering`: makes what renders prompts, if the secure world does not.
    """

    def __init__(
        self,
        server: RemoteServer,
        verify: Verify,
        keep: Keep,
        *,
        rounding: int = 1,
        rendering: Callable[[], Rendering] | None = None,
    ) -> None:
        self.metrics = Metrics()
        self._rendering = functools.cache(rendering) if rendering is not None else None
        self._shapes: dict[str, Converted] = {}  # what prompts of a model are rendered by
        self._rounding = rounding
        self._server, self._verify, self._keep = server, verify, keep
        self._owner = secrets.token_bytes(32)
        self._numbers = itertools.count(1)
        self._trust: Trust | None = None
        self._next: list[tuple[bytes, int]] = []  # secrets that this secure world knows, and since when
        self._ahead: dict[str, SealedSecret] = {}  # where there is none: for a request to a model
        self._verifying = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def trust(self) -> Trust:
        """Return the secure world, verified; anew when its key is about to end. Raises as `verify`."""
        async with self._verifying:
            if self._trust is None or self._trust.ends - _now() < _MARGIN:
                nonce = secrets.token_bytes(NONCE)
                said = await self._server.attestation(nonce)
                self._trust = self._verify(said.chain, said.token, nonce)
                self._next, self._ahead, self._shapes = [], {}, {}
            return self._trust

    async def check(self) -> Trust:
        """As `trust`, if requests can be answered now, by the server's word."""
        trust = await self.trust()
        await self._server.check()
        return trust

    @property
    def protection(self) -> Protection:
        """The label of what protects the secure world, by its own attested word."""
        assert self._trust is not None, "it was not verified"
        return self._trust.protection

    @property
    def engine(self) -> str:
        """What computes."""
        assert self._trust is not None, "it was not verified"
        return self._trust.engine

    async def generate(
        self,
        model: str,
        prompt: Prompt,
        sampling: Sampling,
        terms: Terms = USUAL,
        observer: Observer | None = None,
    ) -> Answer:
        """Start a request, as normal.world.World.generate does."""
        return await self._ask(
            Generate(*(0, model, prompt, sampling), rounding=self._rounding, **msgspec.structs.asdict(terms)),
            observer,
        )

    async def embed(
        self,
        model: str,
        texts: Sequence[Entry],
        terms: Terms = USUAL,
        observer: Observer | None = None,
        query: str | None = None,
    ) -> Answer:
        """Start a request for the vectors of `texts`, or their ranks by `query`."""
        fields = msgspec.structs.asdict(terms)
        del fields["reuse"]
        return await self._ask(Embed(0, model, list(texts), query, **fields), observer)

    async def warm(self, model: str, keep_alive: float | None) -> None:
        """Bring all weights of a model in, and keep them for `keep_alive` seconds; 0: let its memory go."""
        if keep_alive == 0:
            await self.convert(model, ToTokens(""), keep_alive)
            return
        async with await self._ask(Warm(0, model, keep_alive)) as answer:
            async for _ in answer:
                pass

    async def convert(self, model: str, source: Source, keep_alive: float | None = None) -> Converted:
        """Return what is made of `source`: tokens, a text, or a conversation as the model would get it."""
        async with await self._ask(Convert(0, model, source, keep_alive)) as answer:
            async for message in answer:
                if isinstance(message, Converted):
                    return message
        raise PeerError("The secure world converted nothing.", hint="Ask again.")

    async def models(self) -> list[ModelStatus]:
        """Return the models of the store, by the secure world's own word."""
        messages = [message async for message in self._messages(Query(0), "")]
        match messages:
            case [Status(models=models)]:
                return models
        raise PeerError("The secure world did not say which models it has.", hint="Ask again.")

    async def close(self) -> None:
        """Break off what runs, and close the connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.close()

    # ---- inside ------------------------------------------------------------------------------------

    async def _ask(self, asked: Asked, observer: Observer | None = None) -> Answer:
        """Have a request sealed and sent; return its answer to come. Raises as `trust`, and CallerError."""
        _check(asked)
        await self.trust()  # what is refused is refused at once
        task: asyncio.Task[None]

        def cancel(_number: int) -> None:
            task.cancel()

        answer = Answer(next(self._numbers), cancel=cancel, observer=observer)
        task = asyncio.create_task(self._carry(asked, answer, request_id.get()), name="sealed-request")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return answer

    async def _carry(self, asked: Asked, answer: Answer, name: str) -> None:
        """Hand the answer to `asked` over as it comes."""
        try:
            async for message in self._messages(asked, name):
                answer.push(message)
            if not answer.ended:
                raise PeerError("The secure world's answer has no end.", hint="Ask again.")
        except FlexServeError as error:
            answer.fail(error)
        except BaseException:
            answer.fail(cancelled())
            raise

    async def _messages(self, asked: Asked, name: str) -> AsyncIterator[Any]:
        """Yield the answer to `asked`. `name`: of its receipt."""
        try:
            async for message in self._attempt(asked, name):
                yield message
        except CallerError as error:
            if error.code != refusal().code:
                raise
            self._trust = None  # its key may have gone, with a secure world that was replaced
            async for message in self._attempt(asked, name):
                yield message

    async def _attempt(self, asked: Asked, name: str) -> AsyncIterator[Any]:
        trust = await self.trust()
        sealed, prompt = (asked, None) if trust.renders else await self._rendered(asked)
        model, now = model_of(asked), _now()
        secret = self._known(trust, model, now) or self._ahead.pop(model, None)
        exchange = Exchange(
            sealed, self._owner_of(sealed, asked), trust.public, trust.token_hash, now, secret=secret
        )
        async with self._server.sealed(exchange.body) as pieces:
            async for piece in pieces:
                for message in exchange.feed(piece):
                    if isinstance(message, Receipt):
                        self._keep(name, message.signed, trust)
                        continue
                    for shown in [message] if prompt is None else prompt.take(message):
                        yield shown
                    if prompt is not None and prompt.ended:
                        return
        exchange.end()
        if trust is self._trust:
            self._next = [*self._next[1 - _AHEAD :], (exchange.next, now)]
            asyncio.get_running_loop().call_soon(self._prepare, model, trust)  # behind the answer's end

    def _owner_of(self, sealed: Asked | Rendered, asked: Asked) -> bytes:
        """Return the secret that decides whose KV is used: a rendered prompt does not say whose it is."""
        if isinstance(sealed, Rendered) and isinstance(asked, Generate):
            return hashlib.sha256(self._owner + asked.owner.encode()).digest()
        return self._owner

    async def _rendered(self, asked: Asked) -> tuple[Rendered, RenderedPrompt | None]:
        """Return what is asked as a secure world takes it that renders no prompt. Raises CallerError."""
        if isinstance(asked, Embed):
            raise cannot_seal("make vectors")
        if not isinstance(asked, Generate):
            return passed(asked), None
        if asked.model not in self._shapes:
            self._shapes[asked.model] = await self.convert(asked.model, AskTemplate())
        assert self._rendering is not None, "nothing renders here"
        prompt = await asyncio.to_thread(self._rendering().prompt, asked, self._shapes[asked.model])
        return prompt.rendered, prompt

    def _known(self, trust: Trust, model: str, now: int) -> SealedSecret | None:
        """Return a secret that an earlier request brought; None: the secure world may have forgotten it."""
        while self._next:
            secret, since = self._next.pop()
            if now - since < _FRESH:
                return named_secret(secret, model, trust.token_hash)
        return None

    def _prepare(self, model: str, trust: Trust) -> None:
        """Seal a secret for a request to `model` that comes beside another, or after a while."""
        if trust is not self._trust or model in self._ahead:
            return
        if len(self._ahead) >= _AHEAD:
            del self._ahead[next(iter(self._ahead))]
        self._ahead[model] = sealed_secret(model, trust.public, trust.token_hash)


def _check(asked: Asked) -> None:
    """Raise CallerError for a request out of bounds, which the secure world would refuse without a word."""
    try:
        msgspec.msgpack.decode(msgspec.msgpack.encode(asked), type=type(asked))
    except UnicodeEncodeError:
        raise CallerError("The prompt is not valid Unicode text.", hint="Send it as UTF-8.") from None
    except msgspec.ValidationError as error:
        raise CallerError(f"The request is out of bounds: {error}.", hint="Make it shorter.") from None


def _now() -> int:
    return time.time_ns() // 1_000_000
