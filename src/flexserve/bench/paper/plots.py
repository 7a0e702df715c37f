"""The plots of a measurement: time to first token, where it goes, workflows, and the pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flexserve.bench import drawing
from flexserve.bench.paper.samples import PARTS
from flexserve.bench.paper.table import NAMES

_COLOURS = {
    "flexserve": drawing.FLEXSERVE,
    "strawman": drawing.STRAWMAN,
    "strawman_opt": drawing.STRAWMAN_OPT,
    "nw_base": drawing.PLAIN,
}
_STACKED = {  # parts of a time: none has the colour of a system
    **{"allocate": "#2f855a", "load": "#9ae6b4", "decrypt": "#b794f4", "waited": "#d53f8c"},
    "compute": "#4a5568",
}


def plot(report: dict[str, Any], path: Path) -> list[Path]:
    """Draw the report into `path`, as PNG and as SVG whatever its suffix; return both files."""
    figure, axes = drawing.pyplot().subplots(2, 2, figsize=(15, 10), layout="constrained")
    _latency(axes[0][0], report["ttft"]["cells"])
    _breakdown(axes[0][1], report["ttft"]["cells"])
    _workflows(axes[1][0], report["workflow"]["cells"])
    _pipeline(axes[1][1], report["pipeline"]["cells"])
    figure.suptitle(
        f"FlexServe and its baselines: {report['cores']} cores, {report['protection']}, "
        f"{drawing.spread(report['rounds'])}"
    )
    return drawing.save(figure, path)


def _latency(axes: Any, cells: list[dict[str, Any]]) -> None:
    """One group of bars for each model and prompt, at the middle pressure."""
    levels = sorted({cell["kept"] for cell in cells})
    shown = [cell for cell in cells if cell["kept"] == levels[len(levels) // 2]]
    bars(axes, shown, grouped(shown))
    axes.set_yscale("log")
    axes.set_ylabel("time to first token, seconds")
    axes.set_title(f"{shown[0]['kept']:.0%} of the weights kept")


def grouped(cells: list[dict[str, Any]]) -> list[str]:
    """Label each cell with its prompt, and the middle one of each model with that, too: names are long."""
    labels = []
    for cell in cells:
        prompts = [other["prompt"] for other in cells if other["model"] == cell["model"]]
        middle = cell["prompt"] == prompts[len(prompts) // 2]
        labels.append(f"{cell['prompt']}\n{cell['model']}" if middle else str(cell["prompt"]))
    return labels


def _workflows(axes: Any, cells: list[dict[str, Any]]) -> None:
    bars(axes, cells, [cell["workflow"].replace(", ", "\n") for cell in cells])
    axes.set_ylabel("end to end, seconds")
    axes.set_title("Agent workflows")


def bars(axes: Any, cells: list[dict[str, Any]], labels: list[str]) -> None:
    """Draw a group of bars for each cell: its samples, by system."""
    width = 0.8 / len(NAMES)
    for number, (system, name) in enumerate(NAMES.items()):
        places = [place + (number - 1.5) * width for place in range(len(cells))]
        samples = [cell["samples"][system] for cell in cells]
        drawing.bars(axes, places, samples, width=width, label=name, color=_COLOURS[system])
    axes.set_xticks(range(len(cells)), labels, fontsize=7)
    axes.margins(y=0.25)  # room for the legend
    axes.legend(frameon=False, fontsize=8, ncols=len(NAMES), loc="upper center")


def _breakdown(axes: Any, cells: list[dict[str, Any]]) -> None:
    """The largest model's middle prompt: what stands in the way of the first token, and what is hidden."""
    model = cells[-1]["model"]
    prompts = sorted({cell["prompt"] for cell in cells})
    shown = [c for c in cells if c["model"] == model and c["prompt"] == prompts[len(prompts) // 2]]
    columns = [(name, shown[-1]["parts"][name], NAMES[name]) for name in ("strawman", "strawman_opt")]
    columns += [
        ("flexserve", cell["parts"]["flexserve"], f"FlexServe\n{cell['kept']:.0%} kept") for cell in shown
    ]
    highest = 0.0
    for place, (_, parts, _label) in enumerate(columns):
        bottom = 0.0
        visible = _visible(parts)
        for part, colour in _STACKED.items():
            axes.bar(place, visible.get(part, 0.0), 0.6, bottom=bottom, color=colour)
            bottom += visible.get(part, 0.0)
        axes.bar(place, parts["hidden"], 0.6, bottom=bottom, color="none", edgecolor="#718096", hatch="//")
        highest = max(highest, bottom + parts["hidden"])
    axes.set_xticks(range(len(columns)), [label for *_, label in columns], fontsize=8)
    for part, colour in _STACKED.items():
        if part != "waited":
            axes.bar(0, 0, color=colour, label=part)
    axes.bar(0, 0, color="none", edgecolor="#718096", hatch="//", label="hidden behind compute")
    axes.set_ylabel("seconds")
    axes.set_title(f"{model}, prompt of {prompts[len(prompts) // 2]}: where the time goes")
    axes.set_ylim(top=1.25 * highest)  # room for the legend
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center")


def _visible(parts: dict[str, float]) -> dict[str, float]:
    """Share what a request waited among the loaders' three kinds of work, by their sizes."""
    work = {part: parts[part] for part in PARTS[:3]}
    total = sum(work.values())
    if total == 0:
        return {"compute": parts["compute"], "waited": parts["waited"]}
    return {part: parts["waited"] * size / total for part, size in work.items()} | {
        "compute": parts["compute"]
    }


def _pipeline(axes: Any, cells: list[dict[str, Any]]) -> None:
    prompts = sorted({cell["prompt"] for cell in cells})
    for prompt, colour in zip(prompts, drawing.SHADES[drawing.FLEXSERVE], strict=False):
        shown = [cell for cell in cells if cell["prompt"] == prompt]
        recalled = [cell["recalled"] for cell in shown]
        samples, bounds = [cell["samples"] for cell in shown], [cell["bounds"] for cell in shown]
        drawing.line(axes, recalled, samples, color=colour, label=f"{prompt} tokens")
        drawing.band(axes, recalled, bounds, color=colour, label="its lower bound")
    axes.set_xlabel("weights recalled, percent")
    axes.set_ylabel("time to first token, seconds")
    axes.set_ylim(bottom=0)
    axes.set_title(f"Pipeline, {cells[0]['model']}")
    axes.legend(frameon=False, fontsize=8)
