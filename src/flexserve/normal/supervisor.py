"""Keeps one secure world alive: notices its death at once, says why, starts the next.

STARTING ──▶ READY ──death──▶ RESTARTING ──▶ READY …
               │                  └─ too many deaths in a row ──▶ FAILED
               └─ drain ──▶ DRAINING ──▶ STOPPED

A death that is a model's doing (flexserve.normal.set_aside) counts as no death in a row: that model
is asked for nothing afterwards, and the server goes on.

A machine that is gone is given up at once: another secure world would find nothing to run on.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from flexserve.errors import FlexServeError, InternalError, MachineGoneError, PeerError
from flexserve.normal.answer import cancelled
from flexserve.normal.broker import Broker
from flexserve.normal.channel import MemoryCounter, WorldChannel
from flexserve.normal.launcher import CUT_OFF
from flexserve.normal.model_options import ModelChoices
from flexserve.normal.set_aside import SetAside

LONG_LIFE = 30.0  # seconds; a secure world that lived longer did not die of how it was started
MAX_SHORT_LIVES = 5  # deaths in a row before that age, after which restarting is pointless
_FIRST_WAIT = 0.25  # seconds before the second restart in a row; doubles up to …
_LONGEST_WAIT = 8.0
_KILLED = "SIGKILL"
# How long a process may take to die after its channel closed: counted, and not as one time, for this process
# may have been stopped, or have had no core, and hears that time has passed before it hears of an end.
_BREATHS, _BREATH = 10, 0.5  # seconds each

_log = structlog.get_logger(__name__)


class WorldState(enum.Enum):
    """What the supervisor knows of the secure world."""

    STARTING = "starting"
    READY = "ok"
    RESTARTING = "restarting"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class SecureWorld(Protocol):
    """A started secure world (normal.launcher.SecureProcess)."""

    channel: WorldChannel | None

    @property
    def pid(self) -> int:
        """Its process id."""

    async def wait(self) -> FlexServeError:
        """Wait for its end; return why it ended."""

    async def stop(self, *, drain: float) -> None:
        """End it in good order within `drain` seconds, or by force after."""

    def kill(self) -> None:
        """End it at once."""


Launch = Callable[[MemoryCounter], Awaitable[SecureWorld]]


class Supervisor:
    """Starts a secure world by `launch` and replaces it when it dies. One event loop only."""

    def __init__(self, launch: Launch, broker: Broker, choices: ModelChoices) -> None:
        """`choices`: how single models are to be served, which each secure world is told first."""
        self._launch = launch
        self._broker = broker
        self._choices = choices
        self._world: SecureWorld | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._born = 0.0
        self.state = WorldState.STARTING
        self.reason: FlexServeError | None = None  # of the last death
        self.failed = asyncio.Event()
        self.restarts = 0
        self.set_aside = SetAside()

    async def start(self) -> None:
        """Start the first secure world. Raises its reason not to start; nothing is left then."""
        await self._bring_up()
        self._keeper = asyncio.create_task(self._keep(), name="secure-world-keeper")
        self._keeper.add_done_callback(self._keeper_ended)

    def channel(self) -> WorldChannel:
        """Return the channel to a living secure world.

        Raises PeerError while there is none, CancelledError while the server shuts down.
        """
        if self.state in (WorldState.DRAINING, WorldState.STOPPED):
            raise cancelled()
        if self.state is not WorldState.READY or self._world is None or self._world.channel is None:
            why = self.reason.message if self.reason else "It is starting."
            hint = (
                self.reason.hint if self.state is WorldState.FAILED and self.reason else "Retry in a moment."
            )
            raise PeerError(f"The secure world is {self.state.value}. {why}", hint=hint)
        if self._world.channel.error is not None:  # just now; the keeper has not seen it yet
            raise PeerError(
                self._world.channel.error.message, hint="It is being restarted; retry in a moment."
            )
        return self._world.channel

    async def stop(self, *, drain: float) -> None:
        """Let running requests finish for `drain` seconds, then end the secure world. Idempotent."""
        if self.state is not WorldState.FAILED:
            self.state = WorldState.DRAINING
        world, keeper = self._world, self._keeper
        if world is not None:
            await world.stop(drain=drain)
        if keeper is not None:
            if world is None:  # between two lives: nothing will end by itself
                keeper.cancel()
            await asyncio.wait({keeper})
        if self.state is WorldState.DRAINING:
            self.state = WorldState.STOPPED

    def kill(self) -> None:
        """End the secure world at once; for a server that must go now. Always safe."""
        if self._world is not None:
            self._world.kill()

    async def _keep(self) -> None:
        short_lives = 0
        while self._world is not None:
            world = self._world
            reason = await self._outlive(world)
            lived = time.monotonic() - self._born
            self._lay_to_rest(reason)
            blamed = self._blame(world, reason)
            short_lives = short_lives if blamed else short_lives + 1 if lived < LONG_LIFE else 0
            while self._world is None and self.state is WorldState.RESTARTING:
                if short_lives >= MAX_SHORT_LIVES:
                    return self._give_up(short_lives)
                await asyncio.sleep(_wait_before(short_lives))
                try:
                    await self._bring_up()
                    self.restarts += 1
                except MachineGoneError as error:
                    return self._fail(error)
                except FlexServeError as error:
                    short_lives += 1
                    self.reason = error
                    _log.error("secure_world_not_restarted", reason=str(error))
        return None

    async def _bring_up(self) -> None:
        world = await self._launch(self._broker)
        if self.state is WorldState.DRAINING:  # the server was told to stop meanwhile
            return await world.stop(drain=0)
        assert world.channel is not None
        try:
            self._broker.attach(world.channel)
            if self._choices.all:
                world.channel.configure(self._choices.all)
        except FlexServeError:
            await world.stop(drain=0)
            raise
        self._world, self._born = world, time.monotonic()
        self.state = WorldState.READY
        _log.info("secure_world_ready", pid=world.pid, protection=world.channel.welcome.protection)
        if self.set_aside.models:
            with contextlib.suppress(FlexServeError):  # it is gone again, which the keeper sees
                self.set_aside.forgive((await world.channel.query()).models)  # which trials are known now
        return None

    async def _outlive(self, world: SecureWorld) -> FlexServeError:
        """Wait until the process or its channel is gone, make sure both are, return the reason."""
        assert world.channel is not None
        ended = asyncio.ensure_future(world.wait())
        closed = asyncio.ensure_future(world.channel.closed.wait())
        try:
            await asyncio.wait({ended, closed}, return_when=asyncio.FIRST_COMPLETED)
            for _ in range(_BREATHS):
                await asyncio.wait({ended}, timeout=_BREATH)
                if ended.done():
                    return ended.result()
            world.kill()  # alive, but it broke the protocol: what it says means nothing any more
            await ended
            return world.channel.error or ended.result()
        finally:
            ended.cancel()
            closed.cancel()
            await world.channel.close()

    def _lay_to_rest(self, reason: FlexServeError) -> None:
        self._world = None
        self._broker.detach()
        if self.state is WorldState.READY:
            self.state = WorldState.RESTARTING
            self.reason = reason
            _log.error("secure_world_died", reason=str(reason))

    def _blame(self, world: SecureWorld, reason: FlexServeError) -> bool:
        """Blame the model that computed when `world` died; return whether there was one."""
        channel = world.channel
        if channel is None or not channel.computing or self.state is not WorldState.RESTARTING:
            return False
        model = channel.computing
        self.set_aside.answered(channel.answered)
        if _KILLED in reason.message or reason.code == CUT_OFF:
            self.set_aside.killed(model, reason, alone=channel.busy <= {model})
        else:
            self.set_aside.crashed(model, reason)
        if model in self.set_aside.models:
            _log.error("model_set_aside", model=model, reason=reason.message)
        return True

    def _give_up(self, lives: int) -> None:
        last = self.reason.message if self.reason else "unknown"
        reason = f"The secure world died {lives} times in a row; last: {last}"
        self._fail(PeerError(reason, hint="Correct that, then start the server again."))

    def _keeper_ended(self, keeper: asyncio.Task[None]) -> None:
        """Do not go on without a keeper: what it did not foresee is our bug, and ends the server."""
        if not keeper.cancelled() and (error := keeper.exception()) is not None:
            kind = type(error).__name__  # not its text, which may quote anything
            self._fail(InternalError(f"Unforeseen {kind} while restarting.", hint="Report this as a bug."))

    def _fail(self, reason: FlexServeError) -> None:
        self.state = WorldState.FAILED
        self.reason = reason
        self.failed.set()
        _log.error("secure_world_failed", reason=str(reason))


def _wait_before(short_lives: int) -> float:
    """Return the seconds to wait before a restart; none for the first."""
    return 0.0 if short_lives <= 1 else min(_FIRST_WAIT * 2.0 ** (short_lives - 2), _LONGEST_WAIT)
