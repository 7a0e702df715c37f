"""The application benchmark: its parts, and what its report makes of what was seen."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from flexserve.bench import application, foreground, group
from flexserve.bench.application_report import (
    SCENARIOS,
    Look,
    Return,
    Run,
    Setting,
    as_text,
    summed_up,
)
from flexserve.bench.group import memory_group
from flexserve.errors import NormalWorldError
from flexserve.units import GIB, MIB

SETTING = Setting(limit=GIB, rows=1000, few=100, warm=1.0, grown=20, rounds=1)


def run(scenario: str, took: float, looks: list[Look], *, slow_until: int = 0) -> Run:
    """A run of twenty portions that took so many seconds each, and the first ones ten times as long."""
    took_each = [took * 10 if number < slow_until else took for number in range(20)]
    done_at = list(itertools.accumulate(took_each))
    return Run(scenario, done_at, [512 * foreground.PORTION] * 20, looks, [], 0)


def recalled_from(at: float) -> list[Look]:
    """A secure world of 600 MiB of which 500 go in half a second from `at` on."""
    looks = [Look(tick / 20 - 1, 300 * MIB, 600 * MIB) for tick in range(int((at + 1) * 20))]
    looks += [Look(at + 0.1 * step, 10 * MIB, (600 - 100 * step) * MIB) for step in range(6)]
    return looks


def test_the_pressure_starts_when_the_cgroup_is_full_or_memory_is_recalled() -> None:
    assert run("idle", 1, recalled_from(2.0)).pressure_at == 2.0
    early = [Look(0.0, 300 * MIB, 600 * MIB), Look(0.5, 300 * MIB, 500 * MIB)]
    assert run("idle", 1, early).pressure_at == 0.5
    assert run("alone", 1, [Look(0.0, 300 * MIB, 0)]).pressure_at is None


def test_portions_count_from_their_beginning() -> None:
    steady = run("alone", 1.0, [])
    assert [steady.portion(at) for at in (-1.0, 0.0, 0.5, 1.0, 1.5, 19.5, 100.0)] == [0, 0, 1, 1, 2, 19, 19]
    assert steady.seconds() == 20.0
    assert steady.seconds(19) == 1.0
    assert steady.speed == foreground.PORTION


def test_what_is_kept_counts_from_a_second_after_the_start_of_the_pressure() -> None:
    steady = [Look(0.0, 300 * MIB, 0)]
    runs = {name: run(name, 0.1, steady) for name in SCENARIOS}
    # Slow for four seconds, which end eight tenths of a second after the pressure started.
    runs["idle"] = run("idle", 0.1, recalled_from(3.2), slow_until=4)
    runs["strawman"] = run("strawman", 0.2, steady)
    report = summed_up([runs], SETTING, 1, 600 * MIB)
    assert report["kept_fraction"] == report["cells"]["idle"]["kept"] == pytest.approx(1.0)
    assert report["cells"]["idle"]["kept_since_growth"] < 0.5
    assert report["cells"]["strawman"]["kept"] == pytest.approx(0.5)
    assert report["cells"]["idle"]["given_back_after_s"] == pytest.approx(0.5)
    assert report["cells"]["idle"]["lacked_s"] == pytest.approx(0.5)
    assert report["cells"]["strawman"]["lacked_s"] is None
    assert report["cells"]["alone"]["read_per_operation"] == 512
    assert "97.2 %" in as_text(report)


def test_rounds_are_summed_up_by_medians() -> None:
    steady = [Look(0.0, 300 * MIB, 0)]
    rounds = []
    for kept in (0.9, 0.98, 0.1):
        runs = {name: run(name, 0.1, steady) for name in SCENARIOS}
        runs["idle"] = run("idle", 0.1 / kept, steady)
        rounds.append(runs)
    report = summed_up(rounds, SETTING, 2, 1)
    assert report["kept_fraction"] == pytest.approx(0.9)
    assert report["cells"]["idle"]["kept_all"] == pytest.approx([0.9, 0.98, 0.1])


def test_a_model_that_came_back_in_every_round_is_told_with_the_longest_wait() -> None:
    steady = [Look(0.0, 300 * MIB, 0)]

    def report(*returns: Return) -> str:
        rounds = []
        for came_back in returns:
            runs = {name: run(name, 0.1, steady) for name in SCENARIOS}
            runs["idle"] = dataclasses.replace(runs["idle"], came_back=came_back)
            rounds.append(runs)
        return as_text(summed_up(rounds, SETTING, 2, 1))

    assert "came back within 27.0 s at most" in report(Return(26.0, 1.1, 1.0), Return(27.0, 1.0, 1.0))
    assert "took 1.05 of a warm one" in report(Return(26.0, 1.1, 1.0), Return(27.0, 1.0, 1.0))
    assert "did not come back everywhere" in report(Return(26.0, 1.1, 1.0), Return(None, 3.0, 1.0))
    assert "was not measured" in as_text(
        summed_up([{n: run(n, 0.1, steady) for n in SCENARIOS}], SETTING, 2, 1)
    )


@pytest.mark.parametrize("access", get_args(foreground.Access))
def test_the_foreground_program_counts_what_it_does(tmp_path: Path, access: foreground.Access) -> None:
    database = str(tmp_path / "documents.db")
    foreground.fill(database, 50)
    result = foreground.run(database, few=10, rows=50, warm=0.25, grown=2, access=access)
    assert len(result["done"]) == len(result["read"]) == 2
    assert 0 < result["done"][0] < result["done"][1]


def test_the_same_rows_are_used_in_every_run_once_it_has_grown(tmp_path: Path) -> None:
    """However long it took before."""
    left = []
    for number, warm in enumerate((0.0, 0.1)):
        database = str(tmp_path / f"{number}.db")
        foreground.fill(database, 2000)
        before = _bodies(database)
        foreground.run(database, few=1, rows=2000, warm=warm, grown=1, access="uniform")
        after = _bodies(database)
        left.append({row for row in after if after[row] != before[row] and row > 0})
    assert left[0] == left[1] != set()


def _bodies(database: str) -> dict[int, bytes]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return dict(connection.execute("SELECT id, body FROM documents"))


def test_zipf_uses_some_rows_often_and_uniform_all_alike() -> None:
    def busiest(choose: Callable[[random.Random, int], int]) -> float:
        """Return which part of the choices falls on the busiest tenth of the rows."""
        chance = random.Random(0)
        counts = collections.Counter(choose(chance, 1000) for _ in range(20_000))
        assert 0 <= min(counts) <= max(counts) < 1000
        return sum(count for _, count in counts.most_common(100)) / 20_000

    assert busiest(foreground._uniform) < 0.2
    assert busiest(foreground._zipf) > 0.6


@pytest.mark.root
def test_what_runs_in_a_group_shares_its_limit_and_ends_with_it() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with memory_group(64 * MIB) as shared:
        within = subprocess.Popen(
            shared.command(["/bin/sh", "-c", "sleep 600 & head -c 20M /dev/zero | tail; sleep 600"])
        )
        hungry = subprocess.run(
            shared.command([sys.executable, "-c", "x = bytearray(200 << 20)"]),
            capture_output=True,
            check=False,
        )
        assert hungry.returncode != 0
        assert shared.used() <= 64 * MIB
    assert within.wait(10) != 0
    assert not shared._folder.exists()


def test_without_cgroups_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "_ROOT", tmp_path)
    with pytest.raises(NormalWorldError, match="no memory cgroups"), memory_group(GIB):
        pass


def test_who_may_make_no_cgroup_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("0")

    def refuse(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(group, "_ROOT", tmp_path)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(NormalWorldError, match="Permission denied") as refused, memory_group(GIB):
        pass
    assert "root" in refused.value.hint


def test_version_2_is_preferred_where_it_has_the_controller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    monkeypatch.setattr(group, "_ROOT", tmp_path)
    assert group._controller() == (2, tmp_path)


def test_the_settings_leave_the_foreground_too_little_memory_for_all_its_data() -> None:
    for setting in (application.FULL, application.QUICK):
        assert setting.rows * foreground.PAGE > setting.limit
        assert setting.few * foreground.PAGE < setting.limit
