"""A normal world over scripted secure worlds: in this event loop, or as processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
import structlog
from brokers import LIMITS, Clock

from flexserve.normal.api.app import create_app
from flexserve.normal.memory import MemoryBroker
from flexserve.normal.world import World, supervised
from flexserve.testing.script import Behaviour, Fault, Script
from flexserve.testing.scripted_link import AdjustableMemory, ScriptedLink
from flexserve.units import MIB

LONG = ["word "] * 2000

MODELS = {
    "tiny": Behaviour(),
    "hungry": Behaviour(memory=64 * MIB, tokens=LONG, token_delay=0.01),
    "slow": Behaviour(tokens=LONG, token_delay=0.01),
    "stuck": Behaviour(queue_delay=3600),
    "forged": Behaviour(fault=Fault.FAIL),
    "garbage": Behaviour(fault=Fault.GARBAGE),
    "oversized": Behaviour(fault=Fault.OVERSIZED),
    "unasked": Behaviour(fault=Fault.UNASKED),
    "repeated": Behaviour(fault=Fault.REPEATED),
    "silent": Behaviour(fault=Fault.SILENCE),
    "still": Behaviour(fault=Fault.STILL),
    "odd": Behaviour(tokens=["ключ", "🔑", "\n\n", '"}', ""]),
}


@pytest.fixture(autouse=True)
def default_logging() -> None:
    """Undo what a program run by another test in this process made of the log."""
    structlog.reset_defaults()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def memory() -> AdjustableMemory:
    return AdjustableMemory()


@pytest.fixture
def link() -> ScriptedLink:
    return ScriptedLink(Script(models=MODELS, max_queue=4))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def broker(memory: AdjustableMemory, clock: Clock) -> MemoryBroker:
    return MemoryBroker(memory, limits=LIMITS, clock=clock)


@pytest.fixture
async def attached(broker: MemoryBroker, link: ScriptedLink) -> AsyncIterator[MemoryBroker]:
    await link.launch(broker)
    assert link.channel is not None
    broker.attach(link.channel)
    yield broker
    await link.stop(drain=0)


@pytest.fixture
async def world(link: ScriptedLink, memory: AdjustableMemory) -> AsyncIterator[World]:
    async with supervised(link.launch, memory, drain=0, limits=LIMITS) as world:
        yield world


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application in this event loop. It reads answers only when they are whole."""
    transport = httpx.ASGITransport(create_app(world), raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Wait until a condition holds; the test's own time limit ends a wait that never does."""
    return _until
