"""The broker where a guest's kernel decides: it asks, measures and tells, and grants nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from flexserve.errors import CallerError, NormalWorldError
from flexserve.normal.guest import GuestBroker
from flexserve.policy.pressure import Bound
from flexserve.protocol.launch import SECURE_WORLD, SecureOptions
from flexserve.protocol.memory import NeedMemory, Returned
from flexserve.testing.script import Behaviour, Script
from flexserve.testing.scripted_link import AdjustableMemory, ScriptedLink
from flexserve.units import GIB, MIB

pytestmark = pytest.mark.anyio


class Guest(AdjustableMemory):
    """A guest of 1 GiB, and its kernel's count of what it handed over."""

    def charged(self, pid: int) -> int:
        return self.resident


class Core:
    program = SECURE_WORLD

    def __init__(self) -> None:
        self.guest = Guest(total=GIB, available=600 * MIB)
        self.resets = 0
        self.hangs = False

    def secure_options(self, options: SecureOptions) -> SecureOptions:
        return options

    def renew(self) -> None:
        pass

    def reset_secure_core(self) -> None:
        self.resets += 1
        if self.hangs:
            raise NormalWorldError("The guest hangs.")

    def memory(self) -> Guest:
        return self.guest


@pytest.fixture
def core() -> Core:
    return Core()


@pytest.fixture
def script() -> Script:
    return Script(models={"tiny": Behaviour(memory=64 * MIB)})


@pytest.fixture
async def broker(core: Core, script: Script) -> AsyncIterator[GuestBroker]:
    broker, link = GuestBroker(core), ScriptedLink(script)
    await link.launch(broker)
    assert link.channel is not None
    broker.attach(link.channel)
    yield broker
    await link.stop(drain=0)


async def test_it_grants_nothing_and_says_who_decides(broker: GuestBroker) -> None:
    answer = broker.need(NeedMemory(1, MIB, MIB))
    assert (answer.size, answer.reason) == (0, "the guest's kernel decides")


async def test_it_shows_what_the_guests_kernel_counts(broker: GuestBroker, core: Core) -> None:
    core.guest.resident = 100 * MIB
    view = broker.look()
    assert (view.total, view.available, view.rss, view.guest) == (GIB, 600 * MIB, 100 * MIB, True)
    assert broker.granted == 100 * MIB
    assert broker.budget().bound is Bound.GUEST
    assert broker.budget().size == 700 * MIB


async def test_a_cap_is_refused_with_what_to_do_instead(broker: GuestBroker) -> None:
    with pytest.raises(CallerError) as error:
        broker.set_cap(GIB)
    assert "--guest-memory" in error.value.hint
    broker.set_cap(None)


async def test_a_recall_brings_more_than_it_ever_granted(broker: GuestBroker) -> None:
    report = await broker.recall(None, deadline=1)
    assert report.before.guest
    assert broker.counters.recalls == 1
    broker.returned(Returned(GIB))


async def test_room_is_made_and_not_held(broker: GuestBroker, core: Core) -> None:
    core.guest.resident = 200 * MIB
    room = await broker.make_room(700 * MIB, deadline=1, hold=30)
    assert room.recall is not None
    assert room.hold_seconds == 0
    assert (await broker.make_room(100 * MIB, deadline=1, hold=30)).recall is None
    with pytest.raises(CallerError):
        await broker.make_room(2 * GIB, deadline=1, hold=30)


async def test_a_death_resets_the_secure_core(broker: GuestBroker, core: Core) -> None:
    broker.detach()
    assert core.resets == 1
    core.hangs = True
    broker.detach()
    assert core.resets == 2
