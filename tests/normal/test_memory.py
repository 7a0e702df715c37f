"""The memory broker: what it grants, that nothing is lost, and that recalls are measured by the OS."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from brokers import LIMITS, Clock
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from flexserve.errors import NormalWorldError, PeerError
from flexserve.normal import memory as memory_module
from flexserve.normal.audit_log import Kind
from flexserve.normal.memory import MemoryBroker
from flexserve.normal.pins import Pins
from flexserve.platforms.ports import MemorySample
from flexserve.policy import pressure
from flexserve.protocol.memory import NeedMemory, Pin, Recall, Recalled, Returned, WantSpare
from flexserve.protocol.prompts import TextPrompt
from flexserve.protocol.sampling import Sampling
from flexserve.simulator import recording
from flexserve.testing.script import Behaviour, Script
from flexserve.testing.scripted_link import AdjustableMemory, ScriptedLink
from flexserve.units import GIB, MIB

pytestmark = pytest.mark.anyio
Until = Callable[[Callable[[], bool]], Awaitable[None]]


def need(size: int, minimum: int = 0, serial: int = 1) -> NeedMemory:
    return NeedMemory(serial, size, minimum)


async def test_the_journal_has_a_sample_when_memory_changed_and_tuning_reads_it(
    attached: MemoryBroker, memory: AdjustableMemory
) -> None:
    request = {"event": "request", "model": "m", "prompt_tokens": 9, "completion_tokens": 4, "ms": 5.0}
    with capture_logs() as written:
        attached.need(need(GIB))
        for _ in range(30):  # seconds in which nothing changes
            attached.need(need(0))
        memory.available -= 2 * GIB
        for _ in range(30):
            attached.need(need(0))
    samples = [entry for entry in written if entry["event"] == "memory_sample"]
    assert [sample["available"] for sample in samples] == [memory.available + 2 * GIB, memory.available]
    lines = [json.dumps({**entry, "timestamp": "2026-01-01T00:00:00Z"}) for entry in [*samples, request]]
    load = recording.read(lines, {"m": GIB}, "serve.log")
    assert [change.others.own for change in load.changes] == [
        sample["total"] - sample["available"] - sample["used"] for sample in samples
    ]


async def test_what_is_granted_and_what_returns_add_up(attached: MemoryBroker) -> None:
    assert attached.need(need(5 * GIB)).size == 5 * GIB
    assert attached.need(need(GIB)).size == GIB
    attached.returned(Returned(2 * GIB))
    assert attached.granted == 4 * GIB


async def test_more_cannot_return_than_was_granted(attached: MemoryBroker) -> None:
    attached.need(need(MIB))
    with pytest.raises(PeerError, match="returned"):
        attached.returned(Returned(2 * MIB))
    assert attached.granted == MIB


async def test_memory_granted_and_not_touched_is_not_granted_twice(
    attached: MemoryBroker, memory: AdjustableMemory
) -> None:
    memory.available = 5 * GIB
    assert attached.need(need(3 * GIB)).size == 3 * GIB
    assert attached.need(need(3 * GIB)).size == 0
    memory.available, memory.resident = 20 * GIB, 3 * GIB  # touched, and others freed some
    assert attached.need(need(3 * GIB)).size == 3 * GIB


async def test_a_refusal_says_why_and_is_remembered(attached: MemoryBroker, memory: AdjustableMemory) -> None:
    memory.available = GIB
    grant = attached.need(need(5 * GIB, minimum=GIB))
    assert grant.size == 0
    assert "refused" in grant.reason
    assert [decision.kind for decision in attached.audit_log.lines()] == [Kind.REFUSAL]
    assert attached.counters.refusals == {"level": 1}


async def test_grants_are_whole_chunks(attached: MemoryBroker, memory: AdjustableMemory) -> None:
    memory.available = 2 * GIB + 3 * MIB
    assert attached.need(need(GIB)).size == 2 * MIB


async def test_an_os_that_does_not_tell_gets_a_refusal_not_an_exception() -> None:
    class Mute:
        def sample(self) -> MemorySample:
            raise NormalWorldError("/proc is not mounted.")

        def charged(self, pid: int) -> int:
            return 0

    assert MemoryBroker(Mute()).need(need(MIB)).size == 0


async def test_the_death_of_the_secure_world_returns_everything(attached: MemoryBroker) -> None:
    attached.need(need(5 * GIB))
    attached.detach()
    assert attached.granted == 0
    with pytest.raises(PeerError):
        await attached.recall(None, deadline=1)


class Shrinking(AdjustableMemory):
    """Memory in which the secure process is smaller at every look."""

    def charged(self, pid: int) -> int:
        self.resident -= MIB
        return self.resident


async def test_a_recall_reports_the_os_next_to_the_claim(link: ScriptedLink) -> None:
    broker = MemoryBroker(Shrinking(resident=GIB), limits=LIMITS)
    await link.launch(broker)
    assert link.channel is not None
    broker.attach(link.channel)
    report = await broker.recall(None, deadline=1)
    assert report.claim.returned == 0
    assert report.freed == report.before.rss - report.after.rss == MIB
    assert report.before.available == report.after.available == 48 * GIB


async def test_asks_in_one_moment_share_a_look_and_still_do_not_spend_memory_twice(
    attached: MemoryBroker, memory: AdjustableMemory, clock: Clock
) -> None:
    clock.step, memory.available = 0.0, 4 * GIB
    assert attached.need(need(GIB)).size == GIB
    memory.available = 40 * GIB  # not seen in this moment
    assert attached.need(need(GIB)).size == GIB
    assert attached.need(need(GIB)).size == 0
    clock.now += 1
    assert attached.need(need(GIB)).size == GIB


async def test_a_recall_that_nobody_awaits_any_more_still_counts(attached: MemoryBroker) -> None:
    attached.need(need(4 * MIB))
    attached.recalled(Recalled(9, 4 * MIB, 0, 0, 0.0, 0, []))
    assert attached.granted == 0


async def test_a_claim_of_more_than_was_granted_ends_the_secure_world(
    attached: MemoryBroker, link: ScriptedLink
) -> None:
    link.scripted.say(Returned(1))
    assert link.channel is not None
    await link.channel.closed.wait()
    assert "returned" in str(link.channel.error)


async def test_pressure_recalls_to_the_high_line_while_a_request_runs(
    attached: MemoryBroker,
    link: ScriptedLink,
    memory: AdjustableMemory,
    until: Until,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (memory_module, pressure):
        monkeypatch.setattr(module, "LONGEST_PERIOD", 0.01)
        monkeypatch.setattr(module, "SHORTEST_PERIOD", 0.01)
    watch = asyncio.create_task(attached.watch())
    assert link.channel is not None
    answer = await link.channel.generate("hungry", TextPrompt("x"), Sampling())
    await until(lambda: attached.granted == 64 * MIB)
    memory.resident, memory.available = 64 * MIB, 2 * GIB - 1
    await until(lambda: attached.granted == 0)
    recalls = link.scripted.every(Recall)
    assert recalls[0].demand == 64 * MIB
    assert not answer.ended
    answer.abandon()
    watch.cancel()


async def test_a_restarted_world_gets_its_own_baseline(memory: AdjustableMemory) -> None:
    link = ScriptedLink(Script(models={"tiny": Behaviour()}))
    broker = MemoryBroker(memory, limits=LIMITS, clock=Clock())
    memory.available = 6 * GIB
    for resident in (MIB, 500 * MIB):
        memory.resident = resident
        await link.launch(broker)
        assert link.channel is not None
        broker.attach(link.channel)
        assert broker.need(need(3 * GIB)).size == 3 * GIB
        assert broker.need(need(3 * GIB)).size == GIB  # nothing of the first grant is touched yet
        broker.detach()


async def test_no_more_is_granted_than_the_cap(attached: MemoryBroker) -> None:
    attached.set_cap(3 * GIB)
    grant = attached.need(need(5 * GIB))
    assert grant.size == 3 * GIB
    assert "cap" in grant.reason
    refused = attached.need(need(GIB, minimum=GIB))
    assert refused.size == 0
    assert "the cap is 3.0 GiB" in refused.reason
    attached.set_cap(None)
    assert attached.need(need(GIB)).size == GIB


async def test_a_lower_cap_recalls_what_is_beyond_it(
    attached: MemoryBroker, link: ScriptedLink, until: Until
) -> None:
    watch = asyncio.create_task(attached.watch())
    assert link.channel is not None
    answer = await link.channel.generate("hungry", TextPrompt("x"), Sampling())
    await until(lambda: attached.granted == 64 * MIB)
    attached.set_cap(16 * MIB)
    await until(lambda: attached.granted == 16 * MIB)
    answer.abandon()
    watch.cancel()


async def test_pins_are_told_at_start_and_at_every_change(memory: AdjustableMemory, until: Until) -> None:
    link = ScriptedLink(Script(models={"tiny": Behaviour()}))
    pins = Pins()
    pins.replace(["tiny"])
    broker = MemoryBroker(memory, limits=LIMITS, pins=pins)
    await link.launch(broker)
    assert link.channel is not None
    broker.attach(link.channel)
    broker.set_pins(["other", "tiny"])
    told = lambda: [m.models for m in link.scripted.every(Pin)]  # noqa: E731
    await until(lambda: told() == [["tiny"], ["other", "tiny"]])
    await link.stop(drain=0)


async def test_the_sums_say_what_was_granted_returned_and_recalled(
    attached: MemoryBroker, link: ScriptedLink, until: Until
) -> None:
    assert link.channel is not None
    answer = await link.channel.generate("hungry", TextPrompt("x"), Sampling())
    await until(lambda: attached.granted == 64 * MIB)
    await attached.recall(None, deadline=1)
    attached.need(need(2 * MIB))
    attached.returned(Returned(2 * MIB))
    counters = attached.counters
    assert (counters.granted, counters.recalled, counters.returned) == (66 * MIB, 64 * MIB, 2 * MIB)
    assert counters.recalls == 1
    assert counters.recall_seconds > 0
    answer.abandon()


@settings(max_examples=100, deadline=None)
@given(
    asks=st.lists(
        st.tuples(st.integers(0, 1 << 53), st.integers(0, 1 << 53), st.integers(0, 1 << 53)), max_size=20
    ),
    cap=st.none() | st.integers(0, 1 << 40),
    available=st.integers(0, 1 << 42),
)
def test_whatever_a_hostile_secure_world_asks_and_claims_the_sum_stays_right(
    asks: list[tuple[int, int, int]], cap: int | None, available: int
) -> None:
    async def run() -> None:
        link = ScriptedLink(Script(models={"tiny": Behaviour()}))
        memory = AdjustableMemory(available=available, free=available, refaulted=0)
        broker = MemoryBroker(memory, limits=LIMITS, cap=cap, clock=Clock())
        await link.launch(broker)
        assert link.channel is not None
        broker.attach(link.channel)
        held = 0
        for size, minimum, back in asks:
            grant = broker.need(NeedMemory(1, size, minimum))
            assert grant.size <= size
            held += grant.size
            try:
                broker.returned(Returned(back))
                held -= back
            except PeerError:
                assert back > held
            assert broker.granted == held >= 0
            assert held <= (available if cap is None else min(cap, available))
        await link.stop(drain=0)

    asyncio.run(run())


# ---- memory that nobody needs -----------------------------------------------------------------------


async def test_what_nobody_needs_is_told_and_logged_with_the_reason_and_not_granted(
    attached: MemoryBroker, memory: AdjustableMemory
) -> None:
    memory.free, memory.refaulted = 40 * GIB, 0
    assert [attached.spare(WantSpare(serial, 3 * GIB, "tiny: it is pinned")).size for serial in (1, 2)] == [
        0,
        GIB,
    ]
    assert attached.granted == 0
    (line,) = attached.audit_log.lines()
    assert (line.kind, line.size, line.reason) == (Kind.REWARM, GIB, "tiny: it is pinned")


async def test_an_answer_that_nothing_is_spare_leaves_no_line(
    attached: MemoryBroker, memory: AdjustableMemory
) -> None:
    memory.available, memory.free, memory.refaulted = 2 * GIB, 2 * GIB, 0
    for serial in range(5):
        assert attached.spare(WantSpare(serial, GIB, "tiny: it is pinned")).size == 0
    assert attached.audit_log.lines() == ()
    assert attached.counters.refusals == {}


async def test_an_os_that_does_not_tell_has_nothing_to_spare() -> None:
    assert MemoryBroker(AdjustableMemory()).spare(WantSpare(1, GIB, "tiny")).size == 0
