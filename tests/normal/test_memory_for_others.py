"""Memory that other programs ask the broker for, or show that they lack."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from brokers import Clock

from flexserve.errors import QueueFullError
from flexserve.normal.audit_log import Kind
from flexserve.normal.memory import MemoryBroker
from flexserve.policy.pressure import MAX_RESERVATIONS
from flexserve.protocol.memory import NeedMemory, Recall
from flexserve.protocol.prompts import TextPrompt
from flexserve.protocol.sampling import Sampling
from flexserve.testing.scripted_link import AdjustableMemory, ScriptedLink
from flexserve.units import GIB, MIB

pytestmark = pytest.mark.anyio
Until = Callable[[Callable[[], bool]], Awaitable[None]]


async def test_memory_that_others_asked_for_is_recalled_for_them_and_kept_from_grants(
    attached: MemoryBroker, link: ScriptedLink, memory: AdjustableMemory, until: Until
) -> None:
    assert link.channel is not None
    answer = await link.channel.generate("hungry", TextPrompt("x"), Sampling())
    await until(lambda: attached.granted == 64 * MIB)
    memory.available, memory.resident = 2 * GIB + MIB, 64 * MIB
    room = await attached.make_room(32 * MIB, deadline=0.5, hold=60)
    assert room.recall is not None
    assert room.recall.claim.returned == 31 * MIB
    assert link.scripted.last(Recall).deadline == 500
    memory.available = 2 * GIB + 33 * MIB
    refused = attached.need(NeedMemory(1, 4 * MIB, 0))
    assert refused.size == 0
    assert "held for another program" in refused.reason
    answer.abandon()


async def test_memory_that_is_available_anyway_is_not_recalled_for_others(attached: MemoryBroker) -> None:
    attached.need(NeedMemory(1, GIB, 0))
    room = await attached.make_room(GIB, deadline=0.5, hold=0)
    assert room.recall is None
    assert room.freed == 0
    assert attached.granted == GIB


async def test_others_can_ask_for_memory_while_there_is_no_secure_world(attached: MemoryBroker) -> None:
    attached.detach()
    assert (await attached.make_room(GIB, deadline=0.5, hold=1)).recall is None


async def test_holds_are_bounded(attached: MemoryBroker, clock: Clock) -> None:
    clock.step = 0.0
    for _ in range(MAX_RESERVATIONS):
        await attached.make_room(1, deadline=0, hold=10)
    with pytest.raises(QueueFullError):
        await attached.make_room(1, deadline=0, hold=10)
    clock.now += 10
    await attached.make_room(1, deadline=0, hold=10)


async def test_others_that_lack_memory_for_files_get_what_no_request_uses_within_two_looks(
    attached: MemoryBroker, link: ScriptedLink, memory: AdjustableMemory, clock: Clock, until: Until
) -> None:
    assert link.channel is not None
    answer = await link.channel.generate("hungry", TextPrompt("x"), Sampling())
    await until(lambda: attached.granted == 64 * MIB)
    memory.free, memory.refaulted, memory.resident = 0, 0, 64 * MIB
    await attached._relieve()
    memory.refaulted = 512 * MIB
    await attached._relieve()
    await until(lambda: attached.granted == 0)
    assert link.scripted.last(Recall).gentle
    line = [line for line in attached.audit_log.lines() if line.kind is Kind.RECALL][-1]
    assert "read back" in line.reason
    answer.abandon()
