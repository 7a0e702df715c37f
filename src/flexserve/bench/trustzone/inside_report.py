"""The report of four systems on the machine with the secure world inside: an object, and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from flexserve.bench.paper.report import PAPER
from flexserve.bench.paper.table import NAMES, markdown
from flexserve.bench.trustzone.inside_plan import InsidePlan
from flexserve.bench.trustzone.report import head
from flexserve.units import format_size

PARTS = {"allocate": "allocate", "restore": "load and decrypt", "compute": "compute"}
_STRAWMEN = ("strawman", "strawman_opt")


def assemble(plan: InsidePlan, rounds: int, parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the report of what was measured in `rounds` rounds: `parts` as InsideRequests has them."""
    return {
        **head(plan, rounds),
        "secure_world": "inside",
        **{name: {**part, "paper": PAPER[name]} for name, part in parts.items()},
    }


def table(report: dict[str, Any]) -> str:
    """Return the whole report as Markdown."""
    machine, cells = report["machine"], report["ttft"]["cells"]
    sections = [
        f"EMULATED: QEMU's Arm machine (TCG), {machine['cpus']} CPUs, one of which computes, "
        f"{format_size(machine['ram'])}, {machine['background_percent']} % of it background memory; "
        f"{report['cores']} cores of the host, load {report['load']:.1f}; medians, interleaved rounds: "
        f"{report['rounds']}. The guest's clock runs with the host's. Seconds say how fast an emulator is: "
        "only ratios count.",
        _figures(report),
        "Time to first token, seconds, by what is kept of the weights (the strawmen keep nothing):",
        _ttft(cells),
        "Where it goes, seconds:",
        _parts(cells),
        "Decoding, tokens a second:",
        _decode(report["decode"]["cells"]),
        "Workflows, seconds from the first call to the last answer:",
        _workflows(report["workflow"]["cells"]),
        "Reading:\n" + "\n".join(f"- {line}" for line in _reading(cells)),
    ]
    return "\n\n".join(sections) + "\n"


def _figures(report: dict[str, Any]) -> str:
    ttft, flow, decode = report["ttft"], report["workflow"], report["decode"]
    kept = [(float(level), found) for level, found in ttft["by_kept"].items()]
    rows: list[Sequence[str]] = [("figure", "the paper's board", "here")]
    for name in _STRAWMEN:
        key = f"speedup_over_{name}_mean"
        label, theirs = f"TTFT over {NAMES[name]}, mean", f"{ttft['paper'][key]:.2f}×"
        rows += [(f"{label}, {_kept(level)}", theirs, f"{found[key]:.2f}×") for level, found in kept]
    rows += [
        (
            f"workflows over {NAMES[name]}, up to",
            f"{flow['paper'][f'speedup_over_{name}_max']:.2f}×",
            f"{flow[f'speedup_over_{name}_max']:.2f}×",
        )
        for name in _STRAWMEN
    ]
    theirs = f"{ttft['paper']['over_nw_base_mean'] - 1:+.2%}"
    rows += [
        (f"TTFT against NW-Base, mean, {_kept(level)}", theirs, f"{found['over_nw_base_mean'] - 1:+.2%}")
        for level, found in kept
    ]
    if "speed_over_nw_base" in decode:
        theirs = f"{decode['paper']['speed_over_nw_base'] - 1:+.2%}"
        rows.append(("decode speed against NW-Base", theirs, f"{decode['speed_over_nw_base'] - 1:+.2%}"))
    return markdown(rows)


def _kept(level: float) -> str:
    return f"{level:.0%} kept"


def _ttft(cells: Sequence[dict[str, Any]]) -> str:
    rows: list[Sequence[str]] = [("model", "prompt", "kept", *NAMES.values(), "× Strawman", "× OPT")]
    for cell in cells:
        seconds = [f"{cell['seconds'][name]:.2f}" for name in NAMES]
        gains = [f"{cell[f'speedup_over_{name}']:.2f}" for name in _STRAWMEN]
        rows.append((cell["model"], str(cell["prompt"]), f"{cell['kept']:.0%}", *seconds, *gains))
    return markdown(rows)


def _parts(cells: Sequence[dict[str, Any]]) -> str:
    rows: list[Sequence[str]] = [("model", "prompt", "system", "kept", *PARTS.values(), "TTFT")]
    for cell in cells:
        for name, parts in cell["parts"].items():
            if name in _STRAWMEN and cell["kept"]:
                continue  # they keep nothing: the same request stands in every cell
            seconds = (*(parts[part] for part in PARTS), cell["seconds"][name])
            numbers = [f"{value:.3f}" for value in seconds]
            rows.append((cell["model"], str(cell["prompt"]), NAMES[name], f"{cell['kept']:.0%}", *numbers))
    return markdown(rows)


def _decode(cells: Sequence[dict[str, Any]]) -> str:
    rows: list[Sequence[str]] = [("model", "FlexServe", "NW-Base", "ratio")]
    for cell in cells:
        speeds = [f"{cell['per_second'][name]:.2f}" for name in ("flexserve", "nw_base")]
        rows.append((cell["model"], *speeds, f"{cell['speed_over_nw_base']:.2f}"))
    return markdown(rows)


def _workflows(cells: Sequence[dict[str, Any]]) -> str:
    rows: list[Sequence[str]] = [("workflow", *NAMES.values(), "× Strawman", "× OPT")]
    for cell in cells:
        seconds = [f"{cell['seconds'][name]:.1f}" for name in NAMES]
        gains = [f"{cell[f'speedup_over_{name}']:.2f}" for name in _STRAWMEN]
        rows.append((cell["workflow"], *seconds, *gains))
    return markdown(rows)


def _reading(cells: Sequence[dict[str, Any]]) -> list[str]:
    straw = [cell["parts"]["strawman"] | {"ttft": cell["seconds"]["strawman"]} for cell in cells]
    share = {part: statistics.mean(parts[part] / parts["ttft"] for parts in straw) for part in PARTS}
    return [
        f"Of Strawman's time to first token, {share['compute']:.0%} is the prompt's computation, which the "
        "emulated CPU does for every system alike (the paper's board has an NPU), "
        f"{share['restore']:.0%} is loading and decrypting, and {share['allocate']:.1%} is getting memory.",
        "FlexServe, Strawman-OPT and NW-Base compute while weights come in; Strawman has all of them first. "
        "One CPU decrypts then, as the other one computes. --platform linux measures what hides behind "
        "compute with more cores.",
        "Ciphertext comes from the guest's disk, which is a file of the host, in its page cache. The disk "
        "reads FlexServe's into the pages in which it is decrypted. The others' is read to a buffer of the "
        "guest's kernel, in four commands a chunk, and copied: the strawmen's memory is the secure world's "
        "before anything is read. So NW-Base with nothing kept is slower than a program that reads a file.",
        "NW-Base is the same application as a process of the guest: UNPROTECTED. It decrypts the same sealed "
        "image, which unprotected weights would not need. With all weights kept, it decrypts nothing.",
        "Each interrupt of the guest switches worlds, and QEMU then forgets its translations. Silicon does "
        "not. Most of what separates FlexServe from NW-Base is probably that; it was not taken apart.",
    ]
