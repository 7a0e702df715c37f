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
    assert not arbiter.end_loading(1, busy=1, took=1)
    assert arbiter.end_loading(1, busy=1, took=1)
    assert not arbiter.crowded


def test_a_loader_that_is_done_tells_nobody_when_nothing_computes(arbiter: CpuArbiter):
    arbiter.begin_loading()
    assert not arbiter.end_loading(1, busy=1, took=1)


def test_how_long_loaders_wait_is_averaged(arbiter: CpuArbiter):
    for _ in range(200):
        arbiter.begin_loading()
        arbiter.end_loading(1, busy=3, took=4)
    assert arbiter.idle == pytest.approx(0.25, abs=0.01)


def test_clocks_that_are_too_coarse_for_a_chunk_tell_nothing(arbiter: CpuArbiter):
    arbiter.begin_loading()
    arbiter.end_loading(1, busy=0, took=0)
    assert arbiter.idle == 1


def test_a_clock_that_jumps_counts_as_busy_all_the_time_and_no_more(arbiter: CpuArbiter):
    for _ in range(200):
        arbiter.begin_loading()
        arbiter.end_loading(1, busy=0.01, took=1e-9)
    assert arbiter.idle == pytest.approx(0, abs=0.01)
