"""The NPU claimed: it comes when there is work, goes when it is wanted or idle, and is never trusted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from flexserve.errors import InternalError
from flexserve.platforms.linux.secure_memory import PlainMemory
from flexserve.platforms.ports import NpuState, Product
from flexserve.policy.npu_share import NpuShare
from flexserve.testing.npu import FakeNpu, Troubled
from flexserve.testing.npu_contract import Bench, eventually
from flexserve.trusted.flexnpu import FlexNpu, Step
from flexserve.units import KIB

FOREVER = 1000.0  # seconds


@contextlib.contextmanager
def kept(fake: FakeNpu, share: NpuShare | None = None, *, patience: float = FOREVER) -> Iterator[FlexNpu]:
    npu = FlexNpu(fake, share or NpuShare(FOREVER, FOREVER), patience=patience)
    yield npu
    fake.stuck = False
    npu.close()
    assert eventually(lambda: fake.state is NpuState.AWAY)


@pytest.fixture
def bench() -> Bench:
    return Bench(PlainMemory(64 * KIB), FakeNpu.limits)


class Work:
    """Some jobs of a product each, and which of them were collected."""

    def __init__(self, bench: Bench, jobs: int) -> None:
        self.bench = bench
        self.products = [bench.product(4, 8, 64) for _ in range(jobs)]
        self.expected = [bench.expected(product) for product in self.products]
        self.collected: list[bytes] = []

    def run(self, npu: FlexNpu) -> bool:
        npu.begin([self._step(product) for product in self.products], self.bench.place)
        return npu.finish()

    def _step(self, product: Product) -> Step:
        return Step([product], 1, lambda: self.collected.append(self.bench.result(product)))


def here(npu: FlexNpu) -> None:
    npu.want()
    assert eventually(npu.ready)


def test_it_is_not_asked_for_before_there_is_work():
    fake = FakeNpu()
    with kept(fake) as npu:
        assert not npu.ready()
        assert fake.state is NpuState.AWAY
        here(npu)
        assert npu.counters.switches == 1


def test_work_is_done_job_by_job(bench: Bench):
    with kept(FakeNpu()) as npu:
        here(npu)
        work = Work(bench, 5)
        assert work.run(npu)
        assert work.collected == work.expected
        assert npu.counters.jobs == 5
        assert npu.ready(), "it is there for the next"


def test_it_goes_when_there_is_no_more_work(bench: Bench):
    fake = FakeNpu()
    with kept(fake, NpuShare(FOREVER, 0.02)) as npu:
        npu.want()
        assert eventually(lambda: npu.counters.switches == 1 and fake.state is NpuState.AWAY)
        assert npu.held() >= 0.02
        npu.want()
        assert eventually(lambda: npu.counters.switches == 2)


def test_it_goes_when_it_is_wanted_while_nobody_computes():
    fake = FakeNpu()
    with kept(fake) as npu:
        here(npu)
        fake.call_back(0.05)
        assert eventually(lambda: fake.state is NpuState.AWAY)


def test_it_goes_between_two_jobs_when_it_is_wanted(bench: Bench):
    fake = Troubled(at=2, trouble=lambda npu: npu.call_back(60.0), delay=0.01)
    with kept(fake, NpuShare(0.0, FOREVER)) as npu:
        here(npu)
        work = Work(bench, 5)
        assert not work.run(npu)
        assert work.collected == work.expected[:2]
        assert eventually(lambda: fake.state is NpuState.AWAY)
        assert npu.counters.lost == 0, "to give it back is no loss"


class LongTurn(NpuShare):
    """Has had the NPU for long, so that the turn of the others is as long."""

    def came(self, now: float) -> None:
        super().came(now - FOREVER)


def test_it_is_not_asked_for_in_the_others_turn():
    fake = FakeNpu()
    with kept(fake, LongTurn(2 * FOREVER, 2 * FOREVER)) as npu:
        here(npu)
        fake.call_back(0.0)
        assert eventually(lambda: fake.state is NpuState.AWAY)
        npu.want()
        assert fake.state is NpuState.AWAY


def test_a_job_that_hangs_when_it_is_wanted_is_given_up_with_it(bench: Bench):
    fake = Troubled(at=1, trouble=lambda npu: npu.call_back(0.05))
    fake.stuck = True
    npu = FlexNpu(fake, NpuShare(FOREVER, FOREVER), patience=FOREVER)
    here(npu)
    assert not Work(bench, 1).run(npu)
    assert fake.state is NpuState.AWAY
    npu.close()


def test_a_job_that_hangs_is_lost_and_the_npu_left_alone(bench: Bench):
    fake = FakeNpu()
    fake.stuck = True
    with kept(fake, patience=0.1) as npu:
        here(npu)
        work = Work(bench, 3)
        assert not work.run(npu)
        assert not work.collected
        assert npu.counters.lost == 1
        npu.want()
        assert not npu.ready()
        assert fake.state is NpuState.AWAY


class SlowToGo(FakeNpu):
    """Stays on its way until the test says otherwise."""

    def _leave(self) -> None:
        self._become(NpuState.LEAVING)
        self._failed = True

    def arrive(self) -> None:
        self._become(NpuState.AWAY)


def test_memory_of_a_lost_job_is_occupied_until_the_npu_is_away(bench: Bench):
    fake = SlowToGo()
    fake.stuck = True
    with kept(fake, patience=0.1) as npu:
        here(npu)
        assert not npu.occupied
        assert not Work(bench, 1).run(npu)
        assert npu.occupied, "it may still write"
        assert not npu.ready()
        fake.arrive()
        assert not npu.occupied


def test_an_npu_that_is_taken_away_is_noticed(bench: Bench):
    fake = FakeNpu()
    with kept(fake) as npu:
        here(npu)
        fake.lose()
        assert eventually(lambda: not npu.ready())
        assert eventually(lambda: npu.counters.held > 0)
        here(npu)
        assert Work(bench, 1).run(npu)


def test_what_collecting_raises_reaches_the_engine(bench: Bench):
    with kept(FakeNpu()) as npu:
        here(npu)

        def fail() -> None:
            raise InternalError("as a test does")

        npu.begin([Step([bench.product(1, 1, 32)], 1, fail)], bench.place)
        with pytest.raises(InternalError):
            npu.finish()
