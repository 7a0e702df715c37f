"""The report of a measurement as Markdown: the figures beside the paper's, then the cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flexserve.bench.paper.reasons import reasons
from flexserve.bench.paper.samples import PARTS

NAMES = {
    "flexserve": "FlexServe",
    "strawman": "Strawman",
    "strawman_opt": "Strawman-OPT",
    "nw_base": "NW-Base",
}


def table(report: dict[str, Any]) -> str:
    """Return the whole report as Markdown."""
    label = report["protection"] if report["protected"] else f"{report['protection']}, UNPROTECTED"
    sections = [
        f"{report['cores']} cores, memory: {label}; medians; interleaved rounds: {report['rounds']}.",
        _figures(report),
        "Time to first token, seconds, by what background pressure leaves of the weights in memory:",
        _ttft(report["ttft"]["cells"]),
        "Where it goes, seconds (loaders' work evenly over their threads; hidden: while it computed):",
        _breakdown(report["ttft"]["cells"]),
        "Workflows, seconds from the first call to the last answer:",
        _workflows(report["workflow"]["cells"]),
        "Why:",
        _why(report),
        "Pipeline: time to first token ÷ lower bound, by percent of the weights recalled:",
        _pipeline(report["pipeline"]["cells"]),
        _restarted(report["restarted_strawman"]),
        _reading(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _figures(report: dict[str, Any]) -> str:
    ttft, flow, decode = report["ttft"], report["workflow"], report["decode"]
    systems = ("strawman", "strawman_opt")
    rows = [
        ("figure", "paper", "here", "limit here"),
        *(_speedup(ttft, f"TTFT over {NAMES[n]}, mean", f"speedup_over_{n}_mean") for n in systems),
        *(_speedup(flow, f"workflows over {NAMES[n]}, up to", f"speedup_over_{n}_max") for n in systems),
    ]
    rows.append(_change(ttft, "TTFT against NW-Base, mean", "over_nw_base_mean"))
    rows.append(_change(decode, "decode speed against NW-Base", "speed_over_nw_base"))
    over, theirs = report["pipeline"]["over_bound_max"], report["pipeline"]["paper"]["over_bound_max"]
    rows.append(("pipeline ÷ lower bound, at most", f"{theirs:.3f} (TZ-LLM)", f"{over:.3f}", ""))
    world = report["normal_world"]
    kept = "not measured" if world["kept_fraction"] is None else f"{world['kept_fraction']:.1%}"
    rows.append(("normal-world application keeps", f"{world['paper']['kept_fraction']:.1%}", kept, ""))
    return markdown(rows)


def _speedup(part: dict[str, Any], label: str, key: str) -> tuple[str, str, str, str]:
    return label, f"{part['paper'][key]:.2f}×", f"{part[key]:.2f}×", f"{part['limit'][key]:.2f}×"


def _change(part: dict[str, Any], label: str, key: str) -> tuple[str, str, str, str]:
    here = f"{part[key] - 1:+.2%}" if key in part else ""
    return label, f"{part['paper'][key] - 1:+.2%}", here, ""


def _ttft(cells: Sequence[dict[str, Any]]) -> str:
    systems = list(NAMES)
    rows: list[Sequence[str]] = [
        ("model", "prompt", "kept", *(NAMES[s] for s in systems), "× Strawman", "× OPT")
    ]
    for cell in cells:
        seconds = [f"{cell['seconds'][system]:.3f}" for system in systems]
        gains = [f"{cell[f'speedup_over_{name}']:.2f}" for name in ("strawman", "strawman_opt")]
        rows.append((cell["model"], str(cell["prompt"]), f"{cell['kept']:.0%}", *seconds, *gains))
    return markdown(rows)


def _breakdown(cells: Sequence[dict[str, Any]]) -> str:
    """Show one prompt length, the middle one, of each model."""
    prompts = sorted({cell["prompt"] for cell in cells})
    shown = [cell for cell in cells if cell["prompt"] == prompts[len(prompts) // 2]]
    rows: list[Sequence[str]] = [("model", "kept", "system", "TTFT", *PARTS)]
    for cell in shown:
        for system, parts in cell["parts"].items():
            if system.startswith("strawman") and cell["kept"] != shown[0]["kept"]:
                continue  # they keep nothing: the same request stands in every cell
            kept = "nothing" if system.startswith("strawman") else f"{cell['kept']:.0%}"
            numbers = [f"{parts[part]:.3f}" for part in PARTS]
            rows.append((cell["model"], kept, NAMES[system], f"{cell['seconds'][system]:.3f}", *numbers))
    return markdown(rows)


def _workflows(cells: Sequence[dict[str, Any]]) -> str:
    rows: list[Sequence[str]] = [("workflow", *NAMES.values(), "× Strawman", "× OPT")]
    for cell in cells:
        seconds = [f"{cell['seconds'][system]:.2f}" for system in NAMES]
        gains = [f"{cell[f'speedup_over_{name}']:.2f}" for name in ("strawman", "strawman_opt")]
        rows.append((cell["workflow"], *seconds, *gains))
    return markdown(rows)


def _why(report: dict[str, Any]) -> str:
    return "\n".join(f"- {line}" for line in reasons(report["workflow"]["cells"], "workflow"))


def _pipeline(cells: Sequence[dict[str, Any]]) -> str:
    rows = [("model", "prompt", "recalled", "TTFT", "bound", "ratio")]
    for cell in cells:
        numbers = (f"{cell['seconds']:.3f}", f"{cell['bound']:.3f}", f"{cell['over_bound']:.3f}")
        rows.append((cell["model"], str(cell["prompt"]), f"{cell['recalled']} %", *numbers))
    return markdown(rows)


def _restarted(restarted: dict[str, Any]) -> str:
    found = ", ".join(f"{model} {seconds:.2f} s" for model, seconds in restarted["seconds"].items())
    return (
        f"Apart, and in no figure above: a Strawman that also starts its process for each request, "
        f"{restarted['prompt']} tokens: {found}."
    )


def _reading(report: dict[str, Any]) -> str:
    """Say what bounds the figures here, from the figures."""
    cells = report["ttft"]["cells"]
    straw = [cell["parts"]["strawman"] | {"ttft": cell["seconds"]["strawman"]} for cell in cells]
    compute = sum(parts["compute"] / parts["ttft"] for parts in straw) / len(straw)
    allocate = sum(parts["allocate"] / parts["ttft"] for parts in straw) / len(straw)
    limit = report["ttft"]["limit"]["speedup_over_strawman_mean"]
    return (
        f"Reading: of a Strawman's time to first token, {compute:.0%} is the prompt's computation, which "
        f"the CPU does here for every system alike (the paper's board has an NPU), and {allocate:.0%} is "
        f"getting memory. Were everything but computation free, the mean speed-up could reach {limit:.2f}×."
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the first of them the head, as an aligned Markdown table."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
