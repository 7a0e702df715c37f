"""The plots of four systems on the machine with the secure world inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flexserve.bench import drawing
from flexserve.bench.paper.plots import bars, grouped
from flexserve.bench.paper.table import NAMES
from flexserve.bench.trustzone.inside_report import PARTS

_STACKED = {"allocate": "#2f855a", "restore": "#b794f4", "compute": "#4a5568"}  # none is a system's colour


def plot(report: dict[str, Any], path: Path) -> list[Path]:
    """Draw the report into `path`, as PNG and as SVG whatever its suffix; return both files."""
    figure, axes = drawing.pyplot().subplots(2, 2, figsize=(15, 10), layout="constrained")
    cells = report["ttft"]["cells"]
    for axis, kept in zip(axes[0], (0.0, 1.0), strict=True):
        shown = [cell for cell in cells if cell["kept"] == kept]
        bars(axis, shown, grouped(shown))
        axis.set_ylabel("time to first token, seconds")
        axis.set_title(f"FlexServe and NW-Base keep {kept:.0%} of the weights; the strawmen nothing")
    _breakdown(axes[1][0], cells)
    flows = report["workflow"]["cells"]
    bars(axes[1][1], flows, [cell["workflow"].replace(", ", "\n") for cell in flows])
    axes[1][1].set_ylabel("end to end, seconds")
    axes[1][1].set_title("Agent workflows")
    figure.suptitle(
        "FlexServe inside of the machine and its baselines, EMULATED (QEMU's TCG: only ratios count); "
        f"{drawing.spread(report['rounds'])}"
    )
    return drawing.save(figure, path)


def _breakdown(axes: Any, cells: list[dict[str, Any]]) -> None:
    """Where the time of the largest model's longest prompt goes."""
    model, prompt = cells[-1]["model"], max(cell["prompt"] for cell in cells)
    of_it = [cell for cell in cells if (cell["model"], cell["prompt"]) == (model, prompt)]
    columns = [
        (f"{NAMES[name]}\n{cell['kept']:.0%} kept", parts)
        for cell in sorted(of_it, key=lambda cell: float(cell["kept"]))
        for name, parts in cell["parts"].items()
        if not (name.startswith("strawman") and cell["kept"])  # they keep nothing: it stands there once
    ]
    bottoms = [0.0] * len(columns)
    for part, label in PARTS.items():
        sizes = [parts[part] for _, parts in columns]
        axes.bar(range(len(columns)), sizes, 0.6, bottom=bottoms, color=_STACKED[part], label=label)
        bottoms = [bottom + size for bottom, size in zip(bottoms, sizes, strict=True)]
    axes.set_xticks(range(len(columns)), [label for label, _ in columns], fontsize=8)
    axes.set_ylim(top=1.2 * max(bottoms))  # room for the legend
    axes.set_ylabel("seconds")
    axes.set_title(f"{model}, prompt of {prompt}: where the time goes")
    axes.legend(frameon=False, fontsize=8, ncols=len(PARTS), loc="upper center")
