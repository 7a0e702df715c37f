"""The report of `flexserve bench` as a table, CSV or a plot."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flexserve.bench import drawing
from flexserve.units import format_size

Row = tuple[str, str, str, str]  # test, plain llama.cpp, FlexServe, FlexServe / plain


def rows(report: dict[str, Any]) -> list[Row]:
    """Return the table: speeds in tokens per second, times in seconds."""
    table: list[Row] = []
    for length, row in report["prompts"].items():
        table.append(_compared(f"pp{length}", row, "prefill"))
        table.append(_compared(f"tg after {length}", row, "decode"))
        table.append((f"TTFT {length}, warm", "", f"{row['warm.ttft']:.3f} s", ""))
        for fraction, seconds in row["cold.ttft"].items():
            table.append((f"TTFT {length}, {fraction} % recalled", "", f"{seconds:.3f} s", ""))
        over = report["cold"]["ttft_over_bound"][length]
        table.append(
            (f"TTFT {length}, all recalled ÷ lower bound", f"{row['cold.bound']:.3f} s", "", f"{over:.2f}")
        )
    start = report["start_to_first_token"]
    table.append(
        ("process start to first token", f"{start['plain']:.2f} s", f"{start['flexserve']:.2f} s", "")
    )
    recall, idle = report["recall"], report["idle"]
    table.append(("recall, OS's count of what came back", "", f"{recall['returned_fraction']:.1%}", ""))
    table.append(("recall, time", "", f"{recall['seconds'] * 1000:.0f} ms", ""))
    table.append(("idle after recall --all: resident", "", format_size(int(idle["secure_rss_bytes"])), ""))
    table.append(("idle: CPU", "", f"{idle['cpu_fraction']:.1%}", ""))
    return table


def _compared(label: str, row: dict[str, float], what: str) -> Row:
    plain, ours, ratio = row[f"plain.{what}"], row[f"warm.{what}"], row[f"warm.{what}_ratio"]
    return label, f"{plain:.1f} tok/s", f"{ours:.1f} tok/s", f"{ratio:.3f}"


def markdown(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table with a line on what protected the run."""
    head: Row = ("test", "plain llama.cpp", "FlexServe", "ratio")
    table = [head, *rows(report)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in table
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    label = report["protection"] if report["protected"] else f"{report['protection']}, UNPROTECTED"
    return "\n".join([f"{report['model']}, {report['cores']} cores, memory: {label}", "", *lines])


def comma_separated(report: dict[str, Any]) -> str:
    """Return the report's rows as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("test", "plain", "flexserve", "ratio"))
    writer.writerows(rows(report))
    return out.getvalue()


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw warm speed beside plain llama.cpp, and TTFT over the fraction recalled, into `path`."""
    pyplot = drawing.pyplot()
    figure, (speed, latency) = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    samples, lengths = report["samples"], list(report["prompts"])
    measured = [(f"{what}.{length}", length) for length in lengths for what in ("prefill", "decode")]
    systems = (
        ("plain", -0.2, "plain llama.cpp", drawing.PLAIN),
        ("warm", 0.2, f"FlexServe ({report['protection']})", drawing.FLEXSERVE),
    )
    for system, shift, label, colour in systems:
        drawing.bars(
            speed,
            [place + shift for place in range(len(measured))],
            [samples[f"{system}.{name}"] for name, _ in measured],
            width=0.4,
            label=label,
            color=colour,
        )
    speed.set_xticks(range(len(measured)), [f"{name.split('.')[0]}\n{length}" for name, length in measured])
    speed.set_xlabel("prompt, in tokens")
    speed.set_ylabel("tokens per second")
    speed.set_title("Speed, everything in memory")
    speed.margins(y=0.25)  # room for the legend
    speed.legend(frameon=False, loc="upper right")
    for length, colour in zip(lengths, drawing.SHADES[drawing.FLEXSERVE], strict=False):
        fractions = [int(fraction) for fraction in report["prompts"][length]["cold.ttft"]]
        seconds = [samples[f"warm.ttft.{length}"]]
        seconds += [samples[f"cold.ttft.{fraction}.{length}"] for fraction in fractions]
        drawing.line(latency, [0, *fractions], seconds, color=colour, label=f"prompt of {length} tokens")
        bound = [samples[f"cold.bound.{length}"]] * 2
        drawing.band(latency, [92, 108], bound, color=colour, label=f"lower bound, {length} tokens")
    latency.set_xlabel("weights recalled, percent")
    latency.set_ylabel("time to first token, seconds")
    latency.set_ylim(bottom=0)
    latency.set_title("Cold start")
    latency.legend(frameon=False)
    for axes in (speed, latency):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{report['model']}, {report['cores']} cores, {drawing.spread(report['runs'])}")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def keep(found: dict[str, Any], path: Path, say: Callable[[str], None] | None = None) -> None:
    """Write what is known so far, a JSON-able object, to `path`; an older one stays until it is whole."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(found))
    fresh.replace(path)
    if say is not None:
        say(f"what is known so far is in {path}")
