"""What the application benchmark saw, and what that says."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import statistics
from typing import Any

from flexserve.bench import foreground
from flexserve.units import MIB, format_size

PAPER_KEPT = 0.972  # of normal-world applications while FlexServe infers
SETTLED = 1.0  # seconds after the start of the pressure
SCENARIOS = ("alone", "idle", "inferring", "strawman")
_FULL = 24 * MIB  # less than this is free: the cgroup is full
_SHRUNK = 16 * MIB  # a secure world smaller by more than this was recalled from


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """How large and how long. `limit` in bytes, `warm` in seconds."""

    limit: int
    rows: int  # of the database
    few: int  # of them used at first
    warm: float
    grown: int  # portions, of foreground.PORTION operations each
    rounds: int
    access: foreground.Access = "zipf"  # which rows it uses


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """Who has how much at one moment (bytes). `at`: seconds since the program began to use all its data."""

    at: float
    free: int  # of the cgroup
    secure: int  # resident in the secure world


@dataclasses.dataclass(frozen=True, slots=True)
class Return:
    """How a model came back without a request. Seconds."""

    after: float | None  # the program ended, all weights were there; None: not as long as was waited
    first_token: float  # of the request after that
    warm: float  # of requests that find everything


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """One scenario of one round."""

    scenario: str
    done_at: list[float]  # seconds since the program grew, of each foreground.PORTION
    read: list[int]  # bytes from the disk, in each of them
    looks: list[Look]
    decisions: list[dict[str, Any]]
    answers: int  # that FlexServe gave meanwhile
    came_back: Return | None = None  # after the program had ended

    @property
    def pressure_at(self) -> float | None:
        """When the cgroup was full first, or memory was recalled lest it be; in seconds, None: never.

        Negative: before the program grew.
        """
        most = 0
        for look in self.looks:
            most = max(most, look.secure)
            if look.free < _FULL or look.secure < most - _SHRUNK:
                return look.at
        return None

    def portion(self, at: float) -> int:
        """Return the first portion, of those that there are, that began `at` seconds or later."""
        return min(bisect.bisect_left([0.0, *self.done_at], at), len(self.done_at) - 1)

    def seconds(self, first: int = 0) -> float:
        """How long it took for all portions from `first` on."""
        return self.done_at[-1] - (self.done_at[first - 1] if first else 0.0)

    @property
    def speed(self) -> float:
        """Operations a second."""
        return len(self.done_at) * foreground.PORTION / self.seconds()

    def read_per_operation(self, first: int = 0) -> float:
        """Bytes from the disk for each operation, from portion `first` on.

        It tells how much memory the program lacked, on a machine however busy.
        """
        return sum(self.read[first:]) / (len(self.read[first:]) * foreground.PORTION)

    def lacked(self) -> float | None:
        """Seconds that the cgroup was full while the secure world had what it gave back later.

        None when it gave nothing back.
        """
        least = min((look.secure for look in self.looks), default=0)
        if self.given_back_at() is None:
            return None
        pairs = itertools.pairwise(self.looks)
        return sum(
            after.at - look.at for look, after in pairs if look.free < _FULL and look.secure > least + _SHRUNK
        )

    def given_back_at(self) -> float | None:
        """When nine tenths of what the secure world shrank by had gone; None: it did not shrink."""
        sizes = [look.secure for look in self.looks]
        most, least = max(sizes, default=0), min(sizes, default=0)
        if most - least < _SHRUNK:
            return None
        goal = most - (most - least) * 9 // 10
        return next(look.at for look in self.looks if look.secure <= goal)


def summed_up(rounds: list[dict[str, Run]], setting: Setting, version: int, model: int) -> dict[str, Any]:
    """Return the report as one JSON-able object. `model` is the size of its file, in bytes."""
    cells = {name: _cell(name, rounds) for name in SCENARIOS}
    return {
        "kept_fraction": cells["idle"]["kept"],
        "paper_kept_fraction": PAPER_KEPT,
        "cells": cells,
        "settled_after_s": SETTLED,
        "access": setting.access,
        "cgroup_version": version,
        "limit_bytes": setting.limit,
        "data_bytes": setting.rows * foreground.PAGE,
        "model_bytes": model,
        "rounds": len(rounds),
    }


def _cell(scenario: str, rounds: list[dict[str, Run]]) -> dict[str, Any]:
    kept, whole, read, pressure, returned, lacked = [], [], [], [], [], []
    for runs in rounds:
        run, alone = runs[scenario], runs["alone"]
        first = runs["idle"].portion((runs["idle"].pressure_at or 0.0) + SETTLED)
        kept.append(alone.seconds(first) / run.seconds(first))
        read.append(run.read_per_operation(first))
        whole.append(alone.seconds() / run.seconds())
        if run.pressure_at is not None:
            pressure.append(run.pressure_at)
        if (given := run.given_back_at()) is not None:
            returned.append(given - (run.pressure_at or 0.0))
        if (seconds := run.lacked()) is not None:
            lacked.append(seconds)
    last = rounds[-1][scenario]
    came_back = [back for runs in rounds if (back := runs[scenario].came_back) is not None]
    back_after = [back.after for back in came_back if back.after is not None]
    return {
        "kept": statistics.median(kept),
        "kept_all": kept,
        "kept_since_growth": statistics.median(whole),
        "operations_per_second": statistics.median(runs[scenario].speed for runs in rounds),
        "read_per_operation": statistics.median(read),
        "pressure_at_s": statistics.median(pressure) if pressure else None,
        "given_back_after_s": statistics.median(returned) if returned else None,
        "lacked_s": max(lacked) if lacked else None,
        "secure_bytes_first": last.looks[0].secure if last.looks else 0,
        "secure_bytes_last": last.looks[-1].secure if last.looks else 0,
        "answers": statistics.median(runs[scenario].answers for runs in rounds),
        "back_after_s": max(back_after) if back_after and len(back_after) == len(came_back) else None,
        "first_token_over_warm": statistics.median(back.first_token / back.warm for back in came_back)
        if came_back
        else None,
        "timeline": _timeline(last),
        "decisions": last.decisions,
    }


def _timeline(run: Run) -> list[dict[str, float]]:
    """Return one row for each portion: its begin, operations a second, bytes free and in the secure world."""
    rows = []
    for at, done in itertools.pairwise([0.0, *run.done_at]):
        look = next((look for look in run.looks if look.at >= at), run.looks[-1])
        speed = foreground.PORTION / (done - at)
        rows.append({"s": at, "per_second": speed, "free": look.free, "secure": look.secure})
    return rows


def as_text(report: dict[str, Any]) -> str:
    """Return the report for people."""
    lines = [
        f"SQLite over {format_size(report['data_bytes'])} ({report['access']} access) beside a model of "
        f"{format_size(report['model_bytes'])}, in {format_size(report['limit_bytes'])} "
        f"(cgroup v{report['cgroup_version']}, {report['rounds']} rounds, medians)",
        "",
        f"{'':10} {'kept':>7} {'ops/s':>9} {'read/op':>9} {'pressure':>9} {'lacked':>9}",
    ]
    for name, cell in report["cells"].items():
        at = "-" if cell["pressure_at_s"] is None else f"{cell['pressure_at_s']:.2f} s"
        lacked = "-" if cell["lacked_s"] is None else f"{cell['lacked_s']:.2f} s"
        kept, speed = f"{100 * cell['kept']:.1f} %", f"{cell['operations_per_second']:.0f}"
        read = format_size(int(cell["read_per_operation"]))
        lines.append(f"{name:10} {kept:>7} {speed:>9} {read:>9} {at:>9} {lacked:>9}")
    lines.append(f"{'paper':10} {100 * PAPER_KEPT:>5.1f} %   (while inferring, on an NPU)")
    lines += [
        "",
        "kept: from a second after the start of the pressure. lacked: how long, at most in a round, the",
        "cgroup was full while FlexServe had what it gave back later.",
    ]
    lines += ["", _came_back(report["cells"]["idle"])]
    lines += ["", "beside idle FlexServe, over time (last round), and alone at the same operations:"]
    idle, alone = (report["cells"][name]["timeline"] for name in ("idle", "alone"))
    for mine, theirs in list(zip(idle, alone, strict=True))[::5]:
        share = 100 * mine["per_second"] / max(1.0, theirs["per_second"])
        lines.append(
            f"{mine['s']:6.1f} s {mine['per_second']:9.0f} ops/s ({share:3.0f} % of alone), "
            f"{format_size(int(mine['secure'])):>9} in the secure world, "
            f"{format_size(max(0, int(mine['free']))):>9} free"
        )
    return "\n".join(lines)


def _came_back(cell: dict[str, Any]) -> str:
    """Say when the model came back after the program had ended."""
    if cell["first_token_over_warm"] is None:
        return "what came back after the program had ended was not measured"
    after = cell["back_after_s"]
    when = "did not come back everywhere" if after is None else f"came back within {after:.1f} s at most"
    ratio = cell["first_token_over_warm"]
    return (
        f"after the program had ended, the model {when}; the next first token took {ratio:.2f} of a warm one"
    )
