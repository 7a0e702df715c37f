"""The report of a measurement on the emulated machine as Markdown."""

from __future__ import annotations

from typing import Any

from flexserve.bench.paper.table import markdown
from flexserve.bench.trustzone.npu_table import handovers, prompts, shares
from flexserve.units import format_size

_MEMORY_PARTS = {
    "allocator": "allocate",
    "grant": "grant",
    "map": "unused_take",
    "free": "unused_free",
    "scrub and map": "take",
    "free after": "free",
}
_NO_PARTS = ("",) * len(_MEMORY_PARTS)
_SYSTEMS = {"flexserve": "FlexServe", "strawman": "Strawman", "strawman_opt": "Strawman-OPT"}

_READING = (
    "Reclamation is compared without overwriting the pages, which the paper's 38 ns a page leave no time for "
    "(107 GB/s, on a board with memory of 34 GB/s): mapping and freeing them for Flex-Mem, freeing them for "
    "CMA. `scrubbed` has the monitor's overwriting in both, and it is most of it.",
    "Programs: the emulator walks page tables in software, and with Stage-2 each step of a walk is a walk, "
    "which is probably what memory-bound programs lose here; it was not taken apart.",
    "CMA is measured on background memory that it has not moved yet; what it has to move (a part of the "
    "pages that it gives) makes its price. In a workflow it finds its area empty from the second call on, "
    "which should flatter the strawmen.",
    "All processors share the host's cores with the emulator, and nothing here computes like an NPU: ratios "
    "of requests are smaller than a board's.",
)


def table(report: dict[str, Any]) -> str:
    """Return the whole report as Markdown."""
    machine = report["machine"]
    sections = [
        f"EMULATED: QEMU's Arm machine, {machine['cpus']} CPUs, {format_size(machine['ram'])}, "
        f"{machine['background_percent']} % of it anonymous background memory; {report['cores']} cores of "
        f"the host, load {report['load']:.1f}; medians of {report['rounds']} rounds. Times are the guest's.",
        _bars(report["bars"]),
        "Memory for the secure world, nanoseconds a page (CMA's allocation is counted without the monitor):",
        _memory(report["memory"]),
        "Calls of the monitor:",
        _calls(report["calls"]),
        "Programs of the normal world (inference takes one of the host's cores from the emulator):",
        _programs(report["programs"]),
        "Time to first token, seconds, by what is kept of the weights; FlexServe on Flex-Mem, others on CMA:",
        _ttft(report["ttft"]),
        "Workflows, seconds from the first call to the last answer:",
        _workflows(report["workflow"]),
        "The NPU between the worlds (a process of the host's; the guest's time but for the secure side's):",
        handovers(report["npu"]),
        "A program of the guest that uses the NPU, operations a second:",
        shares(report["npu"]["share"]),
        "Prompts with and without the NPU, which computes on the host's cores like the CPU; q8_0, seconds:",
        prompts(report["npu"]["prefill"]),
        "Reading:\n" + "\n".join(f"- {line}" for line in _READING),
    ]
    return "\n\n".join(sections) + "\n"


def _bars(bars: list[dict[str, Any]]) -> str:
    rows = [("what must be reached", "bar", "worst here", "")]
    for bar in bars:
        met = "reached" if bar["met"] else "MISSED"
        rows.append((bar["what"], f"{bar['bar']:g}", f"{bar['found']:.4g}", met))
    return markdown(rows)


def _memory(memory: dict[str, Any]) -> str:
    paper = memory["paper"]
    rows: list[tuple[str, ...]] = [
        ("kernel", "size", "", *_MEMORY_PARTS, "allocate", "reclaim", "scrubbed", "blocks"),
        (
            *("the paper's board", "8 GiB", "Flex-Mem", *_NO_PARTS),
            f"{paper['flexmem_allocate_ns']:.0f}",
            f"{paper['flexmem_reclaim_ns']:.0f}",
            *("", ""),
        ),
        (
            *("", "", "CMA", *_NO_PARTS),
            f"{paper['cma_allocate_ns']:.0f} ({paper['allocate_speedup']:.1f}×)",
            f"{paper['cma_reclaim_ns']:.0f} ({paper['reclaim_speedup']:.1f}×)",
            *("", ""),
        ),
    ]
    for cell in memory["cells"]:
        for name, label in (("flexmem", "Flex-Mem"), ("cma", "CMA")):
            rows.append(_memory_row(cell, name, label))
    return markdown(rows)


def _memory_row(cell: dict[str, Any], name: str, label: str) -> tuple[str, ...]:
    head = (cell["kernel"], format_size(cell["size"]), label)
    if name not in cell:
        return (*head, "refused", *[""] * (len(_MEMORY_PARTS) + 3))
    spent = cell[name]["ns_per_page"]
    parts = tuple(f"{spent[part]:.0f}" for part in _MEMORY_PARTS.values())
    scrubbed = spent["take"] + spent["free"]
    if name == "flexmem":
        allocate, reclaim = spent["allocate"] + spent["grant"], spent["unused_take"] + spent["unused_free"]
        return (
            *(*head, *parts, f"{allocate:.0f}", f"{reclaim:.0f}", f"{scrubbed:.0f}"),
            _blocks(cell[name]["orders"]),
        )
    sums = tuple(
        f"{value:.0f}" + (f" ({cell[ratio]:.1f}×)" if ratio in cell else "")
        for value, ratio in (
            (spent["allocate"], "allocate_speedup"),
            (spent["unused_free"], "reclaim_speedup"),
            (scrubbed, "scrubbed_speedup"),
        )
    )
    return (*head, *parts, *sums, f"{cell[name]['moved']:.0%} moved")


def _blocks(orders: list[float]) -> str:
    """Return what part of the pages came in blocks of which order."""
    total = sum(orders) or 1
    return ", ".join(f"order {order}: {pages / total:.0%}" for order, pages in enumerate(orders) if pages)


def _calls(calls: dict[str, Any]) -> str:
    paper = calls["paper"]
    beside = {
        "protection off": f"hash check {paper['hash_ms']} ms",
        "protection on": f"{paper['protection_on_ms']} ms + hash check {paper['hash_ms']} ms",
    }
    rows = [("call", "µs", "ns a page", "the paper's board")]
    for name, spent in calls["ns"].items():
        per_page = calls["ns_per_page"].get(name)
        shown = "" if per_page is None else f"{per_page:.0f}"
        rows.append((name, f"{spent / 1000:.2f}", shown, beside.get(name, "")))
    return markdown(rows)


def _programs(programs: dict[str, Any]) -> str:
    rows = [("program", "off, 1/s", "on and idle keeps", "while inferring keeps", "the paper's board")]
    for cell in programs["cells"]:
        kept = cell["kept"]
        rows.append(
            (
                cell["program"],
                f"{cell['per_second']['off']:.0f}",
                f"{kept['idle']:.1%}",
                f"{kept['inferring']:.1%}",
                f"{programs['paper']['kept']:.1%}",
            )
        )
    return markdown(rows)


def _ttft(ttft: dict[str, Any]) -> str:
    rows = [("model", "prompt", "kept", *_SYSTEMS.values(), "over Strawman", "over OPT")]
    for cell in ttft["cells"]:
        seconds = (f"{cell['seconds'][name]:.2f}" for name in _SYSTEMS)
        speedups = (f"{cell[f'speedup_over_{name}']:.2f}×" for name in ("strawman", "strawman_opt"))
        rows.append((cell["model"], str(cell["prompt"]), f"{cell['kept']:.0%}", *seconds, *speedups))
    means = _speedups(ttft, "mean")
    rows.append(("mean", "", "", "", "", "", *means))
    rows.append(("the paper's board", "", "", "", "", "", *_speedups(ttft["paper"], "mean")))
    return markdown(rows)


def _workflows(flow: dict[str, Any]) -> str:
    rows = [("workflow", *_SYSTEMS.values(), "over Strawman", "over OPT")]
    for cell in flow["cells"]:
        seconds = (f"{cell['seconds'][name]:.2f}" for name in _SYSTEMS)
        speedups = (f"{cell[f'speedup_over_{name}']:.2f}×" for name in ("strawman", "strawman_opt"))
        rows.append((cell["workflow"], *seconds, *speedups))
    rows.append(("the paper's board, up to", "", "", "", *_speedups(flow["paper"], "max")))
    return markdown(rows)


def _speedups(part: dict[str, Any], kind: str) -> tuple[str, ...]:
    return tuple(f"{part[f'speedup_over_{name}_{kind}']:.2f}×" for name in ("strawman", "strawman_opt"))
