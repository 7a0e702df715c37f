"""Who has the cores, on a machine where compute needs all of them and on one where it leaves some."""

from __future__ import annotations

import os

import pytest

from flexserve.trusted.weights.cpu_arbiter import CpuArbiter


@pytest.fixture
def arbiter() -> CpuArbiter:
    """Return one of a machine whose every core computes."""
    return CpuArbiter(len(os.sched_getaffinity(0)))


def test_no_loader_begins_while_compute_has_every_core(arbiter: CpuArbiter):
    assert arbiter.free
    arbiter.begin_compute()
    assert not arbiter.free
    arbiter.end_compute()
    assert arbiter.free


def test_as_many_loaders_run_beside_compute_as_it_leaves_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    arbiter = CpuArbiter(1)
    arbiter.begin_compute()
    arbiter.begin_loading()
    assert arbiter.free
    arbiter.begin_loading()
    assert not arbiter.free
    assert not arbiter.crowded


def test_compute_can_begin_once_no_loader_is_on_its_cores(arbiter: CpuArbiter):
    arbiter.begin_loading()
    arbiter.begin_loading()
    arbiter.begin_compute()
    assert arbiter.crowded
    assert not arbiter.end_loading(1, idle=0)
    assert arbiter.end_loading(1, idle=0)
    assert not arbiter.crowded


def test_a_loader_that_is_done_tells_nobody_when_nothing_computes(arbiter: CpuArbiter):
    arbiter.begin_loading()
    assert not arbiter.end_loading(1, idle=0)


def test_how_long_loaders_wait_is_averaged(arbiter: CpuArbiter):
    for _ in range(200):
        arbiter.begin_loading()
        arbiter.end_loading(1, idle=0.25)
    assert arbiter.idle == pytest.approx(0.25, abs=0.01)
