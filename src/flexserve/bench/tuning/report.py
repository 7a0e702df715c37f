"""The report of `flexserve tune`, for people and as a plot."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from flexserve.bench import drawing
from flexserve.bench.tuning.trials import OBJECTIVES
from flexserve.units import MIB, format_size

_TITLES = {
    "first_token": "95 % of first tokens within",
    "kept": "memory kept from others",
    "slowdown": "others' work takes longer by",
}
_COLOURS = {"first_token": "#2b6cb0", "kept": "#c05621", "slowdown": "#2f855a"}


def as_text(report: dict[str, Any]) -> str:
    """Return what was found, and the settings to use."""
    trials = {trial["number"]: trial for trial in report["trials"]}
    default, best = trials[0], trials.get(report["best"])
    lines = [
        f"{len(trials)} trials of {report['hours']:.3g} simulated hours ({', '.join(report['loads'])}); "
        f"{len(report['front'])} on the Pareto front, today's defaults {_placed(report)}",
        "",
    ]
    if best is None:
        lines.append(
            "No trial is better than today's defaults in one thing and not worse in another: keep them."
        )
    else:
        lines.append(f"{'':32}{'defaults':>12}{'found':>12}")
        lines += [
            f"{title:32}{_shown(name, default[name]):>12}{_shown(name, best[name]):>12}"
            for name, title in _TITLES.items()
        ]
        lines += ["", *_changes(report, best)]
    for number, (old, new) in enumerate(report["checks"], start=1):
        shown = (f"{_shown(name, old[name])} → {_shown(name, new[name])}" for name in OBJECTIVES)
        lines.append(f"on loads not seen before, {number}: {', '.join(shown)}")
    if report["checks"]:
        shown = (f"{_TITLES[name]} {over:.2f} ×" for name, over in gain(report).items())
        lines.append(f"median of those, found over defaults: {', '.join(shown)}")
    if report["effects"]:
        lines += ["", "what matters (1: most of all knobs, for " + ", ".join(_TITLES) + "):"]
        lines += [
            f"{effect['knob']:14}" + "".join(f"{effect['share'][name]:8.2f}" for name in OBJECTIVES)
            for effect in report["effects"]
        ]
    return "\n".join(lines)


def gain(report: dict[str, Any]) -> dict[str, float]:
    """Return the median over all checks of what was found over the defaults, for each objective."""
    return {
        name: statistics.median(new[name] / old[name] if old[name] else 1.0 for old, new in report["checks"])
        for name in OBJECTIVES
    }


def _placed(report: dict[str, Any]) -> str:
    return "among them" if 0 in report["front"] else "not among them"


def _changes(report: dict[str, Any], best: dict[str, Any]) -> list[str]:
    return [
        f"{knob['name']:14}{knob['default']:10.4g} → {best['values'][knob['name']]:<10.4g}"
        f"{knob['unit']:14}{knob['meaning']}"
        for knob in report["knobs"]
    ]


def _shown(name: str, value: float) -> str:
    if name == "first_token":
        return f"{value:.2f} s"
    return format_size(int(value)) if name == "kept" else f"{100 * value:.2f} %"


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw all trials, the front and the defaults, and which knobs matter, into `path`."""
    pyplot = drawing.pyplot()
    figure, (cloud, bars) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    _draw_trials(report, figure, cloud)
    _draw_effects(report, bars)
    for axes in (cloud, bars):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw_trials(report: dict[str, Any], figure: Any, axes: Any) -> None:
    trials = report["trials"]
    kept = [trial["kept"] / MIB for trial in trials]
    x, y = [100 * trial["slowdown"] for trial in trials], [trial["first_token"] for trial in trials]
    marks = axes.scatter(x, y, c=kept, cmap="viridis_r", s=16)
    figure.colorbar(marks, ax=axes, label="kept from others, MiB in the mean")
    on_front = [trial for trial in trials if trial["number"] in report["front"]]
    axes.scatter(
        [100 * trial["slowdown"] for trial in on_front],
        [trial["first_token"] for trial in on_front],
        s=60,
        facecolors="none",
        edgecolors="#1a202c",
        label="Pareto front of all three",
    )
    for number, mark, label in ((0, "*", "today's defaults"), (report["best"], "D", "found")):
        for trial in trials:
            if trial["number"] == number:
                axes.scatter(
                    [100 * trial["slowdown"]],
                    [trial["first_token"]],
                    marker=mark,
                    s=160 if mark == "*" else 60,
                    color="#c53030",
                    label=label,
                    zorder=3,
                )
    axes.set_xlabel("others' work takes longer by, percent")
    axes.set_ylabel("95 % of first tokens within, seconds")
    axes.set_title(f"{len(trials)} trials of {report['hours']:.3g} simulated hours")
    axes.legend(frameon=False, loc="upper right")


def _draw_effects(report: dict[str, Any], axes: Any) -> None:
    effects = report["effects"]
    for offset, name in enumerate(OBJECTIVES):
        axes.barh(
            [place + 0.27 * (offset - 1) for place in range(len(effects))],
            [effect["share"][name] for effect in effects],
            0.27,
            color=_COLOURS[name],
            label=_TITLES[name],
        )
    axes.set_yticks(range(len(effects)), [effect["knob"] for effect in effects])
    axes.invert_yaxis()
    axes.set_xlabel("effect, of the largest (Morris)")
    axes.set_title("Which knobs matter")
    axes.legend(frameon=False, loc="lower right")
