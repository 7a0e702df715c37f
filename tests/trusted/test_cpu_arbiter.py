"""Who has the cores, on a machine where compute needs all of them and on one where it leaves some."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import cast

import pytest

from flexserve.trusted.weights.cpu_arbiter import CpuArbiter
from flexserve.trusted.weights.job import RestoreJob


@pytest.fixture
def job() -> SimpleNamespace:
    return SimpleNamespace(short=False, loadable=True)


@pytest.fixture
def changed() -> threading.Condition:
    return threading.Condition()


@pytest.fixture
def cores(changed: threading.Condition, job: SimpleNamespace) -> CpuArbiter:
    return CpuArbiter(changed, len(os.sched_getaffinity(0)), lambda: cast(RestoreJob, job))


def test_no_loader_begins_while_compute_has_every_core(cores: CpuArbiter):
    assert cores.free
    with cores.computing():
        assert not cores.free
        with cores.resting():
            assert cores.free
        assert not cores.free
    assert cores.free


def test_as_many_loaders_run_beside_compute_as_it_leaves_cores(
    changed: threading.Condition, job: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    cores = CpuArbiter(changed, 1, lambda: cast(RestoreJob, job))
    with cores.computing():
        cores.begin_loading()
        assert cores.free
        cores.begin_loading()
        assert not cores.free


def test_compute_begins_when_the_chunk_in_hand_is_put_down(
    cores: CpuArbiter, changed: threading.Condition, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("flexserve.trusted.weights.cpu_arbiter._CLAIMED", 60)
    begun = threading.Event()

    def compute() -> None:
        with cores.computing():
            begun.set()

    cores.begin_loading()
    thread = threading.Thread(target=compute)
    thread.start()
    assert not begun.wait(0.1)
    with changed:
        cores.end_loading(idle=0)
    assert begun.wait(10)
    thread.join()


@pytest.mark.parametrize("why", ["short of memory", "slow"])
def test_compute_does_not_wait_for_a_loader_that_waits_itself(
    cores: CpuArbiter, job: SimpleNamespace, why: str
):
    job.short = why == "short of memory"
    cores.begin_loading()
    with cores.computing():  # or this hangs
        assert not cores.free


def test_loaders_are_woken_at_the_end_of_a_slice(cores: CpuArbiter, changed: threading.Condition):
    woken = threading.Event()

    def load() -> None:
        with changed:
            changed.wait_for(lambda: cores.free)
        woken.set()

    with cores.computing():
        thread = threading.Thread(target=load)
        thread.start()
        assert not woken.wait(0.1)
    assert woken.wait(10)
    thread.join()


def test_how_long_loaders_wait_is_averaged(cores: CpuArbiter):
    for _ in range(200):
        cores.begin_loading()
        cores.end_loading(idle=0.25)
    assert cores.idle == pytest.approx(0.25, abs=0.01)
