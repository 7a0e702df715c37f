"""What benchmarks draw with: matplotlib, which an installation without the extra `bench` does not have."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flexserve.errors import CallerError

# One colour is one system, in every plot; plain llama.cpp is what the paper calls NW-Base.
FLEXSERVE, PLAIN, STRAWMAN, STRAWMAN_OPT = "#2b6cb0", "#9aa5b1", "#9b2c2c", "#dd6b20"
# What differs in its prompt only has a shade of its system's colour.
SHADES = {FLEXSERVE: ("#2b6cb0", "#63b3ed", "#1a365d", "#90cdf4")}
_RANGE = {"elinewidth": 0.8, "capsize": 2, "ecolor": "#1a202c"}


def pyplot() -> Any:
    """Return matplotlib's pyplot, which draws into files. Raises CallerError where it is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise CallerError(
            "Plots need matplotlib, which is not installed here.",
            hint="Install it with `pip install 'flexserve[bench]'`, or leave --plot away.",
            code="extra_missing",
        ) from None
    mpl.use("Agg")
    from matplotlib import pyplot as drawn

    return drawn


def save(figure: Any, path: Path) -> list[Path]:
    """Write a figure as PNG and as SVG, whatever the suffix of `path`, and close it; return both files."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    files = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in files:
        figure.savefig(file, dpi=120)
    pyplot().close(figure)
    return files


def spread(rounds: int) -> str:
    """Return what bars and lines show of so many rounds, for a title."""
    return "one round" if rounds == 1 else f"medians and ranges of {rounds} interleaved rounds"


def bars(axes: Any, places: Sequence[float], samples: Sequence[Sequence[float]], **how: Any) -> None:
    """Draw a bar as high as the median of each of `samples`, with its range. `how`: as matplotlib's bar."""
    middles = [statistics.median(each) for each in samples]
    axes.bar(places, middles, yerr=_reach(middles, samples), error_kw=_RANGE, **how)


def line(axes: Any, places: Sequence[float], samples: Sequence[Sequence[float]], **how: Any) -> None:
    """Draw a line through the medians of `samples`, with their ranges. `how`: as matplotlib's errorbar."""
    middles = [statistics.median(each) for each in samples]
    reach = _reach(middles, samples)
    axes.errorbar(places, middles, yerr=reach, marker="o", capsize=3, elinewidth=0.8, **how)


def band(axes: Any, places: Sequence[float], samples: Sequence[Sequence[float]], **how: Any) -> None:
    """Draw the range of `samples` as a band: what is measured has no sharp edge."""
    low, high = [min(each) for each in samples], [max(each) for each in samples]
    axes.fill_between(places, low, high, alpha=0.25, linewidth=0, **how)


def _reach(middles: Sequence[float], samples: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return how far samples reach below and above their medians."""
    below = [middle - min(each) for middle, each in zip(middles, samples, strict=True)]
    return [below, [max(each) - middle for middle, each in zip(middles, samples, strict=True)]]
