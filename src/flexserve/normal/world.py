"""The secure world as the rest of the normal world sees it: one object that is always there.

`running_world` is the composition used by the server, by `flexserve run` and by tests: broker,
supervisor and launcher wired together, started and ended in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from flexserve.errors import FlexServeError, PeerError, UnknownModelError
from flexserve.normal import journal
from flexserve.normal.answer import Answer, Observer
from flexserve.normal.audit_log import AuditLog, Counters
from flexserve.normal.broker import Broker, OsView, RecallReport, Room
from flexserve.normal.channel import MemoryCounter, WorldChannel
from flexserve.normal.guest import GuestBroker, SecureCore
from flexserve.normal.launcher import Launcher, secure_command
from flexserve.normal.memory import MemoryBroker
from flexserve.normal.model_options import ModelChoices
from flexserve.normal.pins import Pins
from flexserve.normal.process import Started
from flexserve.normal.set_aside import Blamed
from flexserve.normal.supervisor import Launch, SecureWorld, Supervisor, WorldState
from flexserve.platforms.linux.normal_memory import LinuxNormalMemory
from flexserve.platforms.ports import NormalMemory, Protection
from flexserve.policy.pressure import Budget, Limits
from flexserve.protocol.answers import Converted
from flexserve.protocol.evidence import Attested
from flexserve.protocol.launch import SECURE_WORLD, SecureOptions
from flexserve.protocol.messages import Status, Welcome
from flexserve.protocol.model_options import ModelOptions
from flexserve.protocol.prompts import Entry, Prompt, Source, ToTokens
from flexserve.protocol.requests import Terms
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.statuses import ModelStatus

if TYPE_CHECKING:
    from flexserve.normal.metrics import Metrics

_USUAL = Terms()
DRAIN = 10.0  # seconds that running requests get when their server ends


@dataclasses.dataclass(frozen=True, slots=True)
class WorldReport:
    """The secure world's own account, and next to it what the normal world counts."""

    status: Status
    os: OsView
    granted: int  # bytes granted by the normal world and not returned
    pid: int


class World:
    """The facade of the secure world. One event loop; every method may raise PeerError while the
    secure world is down, and CancelledError once the server is shutting down."""

    def __init__(self, supervisor: Supervisor, broker: Broker, choices: ModelChoices) -> None:
        """`choices`: how single models are served."""
        self._supervisor = supervisor
        self._broker = broker
        self._choices = choices
        self._welcome = supervisor.channel().welcome

    @functools.cached_property
    def metrics(self) -> Metrics:
        """What monitoring reads. Made when it is first asked for: nobody monitors the worlds of a command."""
        from flexserve.normal.metrics import Metrics

        return Metrics()

    @property
    def state(self) -> WorldState:
        """Whether requests can be served now."""
        return self._supervisor.state

    @property
    def ready(self) -> bool:
        """Whether requests can be served now."""
        return self.state is WorldState.READY

    @property
    def failure(self) -> FlexServeError | None:
        """Why the secure world last died; None if it never did."""
        return self._supervisor.reason

    @property
    def restarts(self) -> int:
        """How often a dead secure world was replaced."""
        return self._supervisor.restarts

    @property
    def welcome(self) -> Welcome:
        """What the present secure world (or the last one, while there is none) said of itself."""
        with contextlib.suppress(FlexServeError):
            self._welcome = self._supervisor.channel().welcome
        return self._welcome

    @property
    def engine(self) -> str:
        """llama.cpp's build, and the features of the CPU that it uses."""
        return self.welcome.engine

    @property
    def protection(self) -> Protection:
        """The label of what protects this run."""
        return Protection(self.welcome.protection, self.welcome.protected, self.welcome.summary)

    @property
    def audit_log(self) -> AuditLog:
        """The last memory decisions, with their reasons."""
        return self._broker.audit_log

    @property
    def counters(self) -> Counters:
        """Sums of what was granted, refused and recalled since the server started."""
        return self._broker.counters

    @property
    def granted(self) -> int:
        """Bytes granted to the secure world and not returned."""
        return self._broker.granted

    @property
    def cap(self) -> int | None:
        """Bytes that may be granted at most; None: no cap."""
        return self._broker.cap

    @property
    def pins(self) -> tuple[str, ...]:
        """The pinned models."""
        return self._broker.pins

    def check(self) -> None:
        """Return if a request could be served now; raise what it would be answered otherwise."""
        still = self._supervisor.channel().still
        if still:
            raise PeerError(
                f"The engine has not moved for {still:.0f} seconds.",
                hint="The secure world starts again if this goes on; retry then.",
                code="engine_still",
            )

    async def generate(
        self,
        model: str,
        prompt: Prompt,
        sampling: Sampling,
        terms: Terms = _USUAL,
        observer: Observer | None = None,
    ) -> Answer:
        """Start a request; `async with` the answer, and iterate it. See normal.answer.Answer.

        Raises CallerError for a request out of bounds, QueueFullError when too many are in flight.
        """
        channel, terms = await self._admitted(model, terms)
        return await channel.generate(model, prompt, sampling, terms, observer)

    async def embed(
        self,
        model: str,
        texts: Sequence[Entry],
        terms: Terms = _USUAL,
        observer: Observer | None = None,
        query: str | None = None,
    ) -> Answer:
        """Start a request for the vectors of `texts`, or their ranks by `query`; otherwise as `generate`."""
        channel, terms = await self._admitted(model, terms)
        return await channel.embed(model, texts, terms, observer, query)

    async def warm(self, model: str, keep_alive: float | None) -> None:
        """Bring all weights of a model in, and keep them for `keep_alive` seconds; 0: let its memory go.

        Raises as `generate`.
        """
        if keep_alive == 0:
            await self.convert(model, ToTokens(""), keep_alive)
            return
        channel, _ = await self._admitted(model, _USUAL)
        async with await channel.warm(model, keep_alive) as answer:
            async for _ in answer:
                pass

    async def convert(self, model: str, source: Source, keep_alive: float | None = None) -> Converted:
        """Return the tokens of a text, the text of tokens, a conversation as the model would get it, or the
        template that makes it so.

        Raises as `generate`, and CallerError for what cannot be converted. Wakes no weights.
        """
        channel, _ = await self._admitted(model, _USUAL)
        async with await channel.convert(model, source, keep_alive) as answer:
            async for message in answer:
                if isinstance(message, Converted):
                    return message
        raise PeerError("The secure world converted nothing.", hint="See the server's log.")

    async def attest(self, nonce: bytes) -> Attested:
        """Return the chain and the token of the secure world, with a client's nonce.

        Raises its reason to give none, PeerError when there is no secure world.
        """
        return await self._supervisor.channel().attest(nonce)

    async def sealed(self, model: str, body: bytes) -> Answer:
        """Pass a sealed request on, to `model` as its header says ("": none); otherwise as `generate`."""
        channel, _ = await self._admitted(model, _USUAL)
        return await channel.sealed(body)

    async def try_model(self, model: str) -> None:
        """Have a model opened, computed with once, and what it can do recorded.

        Raises what keeps it from that; PeerError when the secure world dies of it.
        """
        async with await self._supervisor.channel().try_model(model) as answer:
            async for _ in answer:
                pass

    async def _admitted(self, model: str, terms: Terms) -> tuple[WorldChannel, Terms]:
        """Return the channel for a request, and its terms without a next model that is set aside.

        Raises SetAsideError for a model that is, unless it was tried with success since.
        """
        channel, aside = self._supervisor.channel(), self._supervisor.set_aside
        if aside.models and {model, terms.next_model} & aside.models.keys():
            aside.forgive((await channel.query()).models)
            aside.check(model)
            if terms.next_model in aside.models:
                terms = msgspec.structs.replace(terms, next_model=None)
        return channel, terms

    @property
    def set_aside(self) -> dict[str, Blamed]:
        """The models that a secure world died of, which are asked for nothing for the time being."""
        return self._supervisor.set_aside.models

    async def report(self) -> WorldReport:
        """Return the state of models and memory. Never wakes a model."""
        channel = self._supervisor.channel()
        status = await channel.query()
        return WorldReport(status, self._broker.look(), self._broker.granted, channel.welcome.pid)

    async def models(self) -> list[ModelStatus]:
        """Return the models of the store and their states."""
        return (await self._supervisor.channel().query()).models

    async def recall(self, demand: int | None, *, deadline: float) -> RecallReport:
        """Take `demand` bytes (None: all that no running request uses) back within `deadline` s."""
        self._supervisor.channel()  # says better than the broker why there is none
        return await self._broker.recall(demand, deadline=deadline)

    async def make_room(self, size: int, *, deadline: float, hold: float) -> Room:
        """Have `size` bytes available for another program within `deadline` s, and kept for `hold` s."""
        return await self._broker.make_room(size, deadline=deadline, hold=hold)

    def budget(self) -> Budget:
        """Return what the secure world may hold now and why not more."""
        return self._broker.budget()

    def set_cap(self, cap: int | None) -> None:
        """Grant no more than `cap` bytes from now on (None: no cap); what is beyond it is recalled."""
        self._broker.set_cap(cap)

    async def set_pins(self, models: Iterable[str]) -> None:
        """Pin `models` and no others. Raises UnknownModelError; nothing is changed then."""
        wanted = set(models)
        if unknown := wanted - {model.name for model in await self.models()} - set(self.pins):
            raise UnknownModelError(
                f"There is no model {min(unknown)!r}.", hint="`flexserve list` shows the models."
            )
        self._broker.set_pins(wanted)

    def options_of(self, model: str) -> ModelOptions:
        """Return how `model` is to be served, where that is not as usual."""
        return self._choices.of(model)

    async def set_options(self, model: str, options: ModelOptions) -> None:
        """Have `model` served so from when it is opened next.

        Raises UnknownModelError, and as ModelChoices.replace; nothing is changed then.
        """
        descriptions = {status.name: status.description for status in await self.models()}
        for name in (model, options.draft or model):
            if name not in descriptions:
                raise UnknownModelError(
                    f"There is no model {name!r}.", hint="`flexserve list` shows the models."
                )
        about = descriptions[model]
        self._choices.replace(model, options, trained=about.trained_context if about is not None else 0)
        with contextlib.suppress(FlexServeError):  # the next secure world is told when it starts
            self._supervisor.channel().configure(self._choices.all)

    async def failed(self) -> FlexServeError:
        """Wait until the secure world is given up for good, and return why."""
        await self._supervisor.failed.wait()
        assert self._supervisor.reason is not None
        return self._supervisor.reason

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, let running ones finish for `seconds`, end the secure world."""
        await self._supervisor.stop(drain=seconds)

    def kill(self) -> None:
        """End the secure world at once."""
        self._supervisor.kill()


@contextlib.asynccontextmanager
async def running_world(
    options: SecureOptions,
    *,
    drain: float = DRAIN,
    limits: Limits | None = None,
    memory: NormalMemory | None = None,
    cap: int | None = None,
    pins: Pins | None = None,
    choices: ModelChoices | None = None,
    core: SecureCore | None = None,
    program: str = SECURE_WORLD,
    early: Started | None = None,
) -> AsyncIterator[World]:
    """Start a secure world with `options`, keep it alive, end it on the way out. `program`: its module.

    `cap` bounds the bytes that are granted; `pins` are the models to keep, and where they are written;
    `choices` say how single models are served, and where that is written.
    With a `core` the secure world runs on its machine, whose kernel decides about memory instead. `early`: a
    secure world that was started with the same options, for no machine of its own; it becomes the first.

    Leaving in good order lets running requests finish for `drain` seconds; leaving by an
    exception ends them. Raises what normal.launcher.Launcher.launch raises.
    """
    journal.configure_if_unset()
    if core is not None:
        launch = _launch_on(core, options)
        broker: Broker = GuestBroker(core, pins=pins)
    else:
        command = functools.partial(secure_command, options, program=program)
        launch = Launcher(command, fds=options.fds, early=early).launch
        broker = MemoryBroker(memory or LinuxNormalMemory(), limits=limits, cap=cap, pins=pins)
    async with _kept_alive(launch, broker, choices, drain=drain) as world:
        yield world


def _launch_on(core: SecureCore, usual: SecureOptions) -> Launch:
    """Return how a secure world is started on a machine, for as long as there is one."""

    async def launch(memory: MemoryCounter) -> SecureWorld:
        await asyncio.to_thread(core.renew)
        options = core.secure_options(usual)
        command = functools.partial(secure_command, options, program=core.program)
        return await Launcher(command, fds=options.fds).launch(memory)

    return launch


@contextlib.asynccontextmanager
async def supervised(
    launch: Launch,
    memory: NormalMemory,
    *,
    drain: float = DRAIN,
    limits: Limits | None = None,
    cap: int | None = None,
    pins: Pins | None = None,
    choices: ModelChoices | None = None,
) -> AsyncIterator[World]:
    """Do what running_world does, for any way to launch and any view of memory."""
    broker = MemoryBroker(memory, limits=limits, cap=cap, pins=pins)
    async with _kept_alive(launch, broker, choices, drain=drain) as world:
        yield world


@contextlib.asynccontextmanager
async def _kept_alive(
    launch: Launch, broker: Broker, choices: ModelChoices | None, *, drain: float
) -> AsyncIterator[World]:
    choices = choices or ModelChoices()
    supervisor = Supervisor(launch, broker, choices)
    await supervisor.start()
    watch = asyncio.create_task(broker.watch(), name="memory-watch")
    grace = 0.0
    try:
        yield World(supervisor, broker, choices)
        grace = drain
    finally:
        watch.cancel()
        await supervisor.stop(drain=grace)
