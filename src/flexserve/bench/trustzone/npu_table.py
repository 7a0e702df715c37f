"""The NPU's part of the emulated machine's report as Markdown."""

from __future__ import annotations

from typing import Any

from flexserve.bench.paper.table import markdown

_TIMES = {  # label, and the paper's key
    "enter": ("NPU_GRANT until SECURE", "mode_switch"),
    "leave": ("the reset after NPU_RELEASE until NORMAL", "mode_switch"),
    "borrow": ("NPU_WANT until NPU_GRANTED, as the secure side sees it", ""),
    "give_back": ("NPU_RELEASE until NORMAL, as the secure side sees it", ""),
    "launch": ("a job's description until NPU_DRIVE is done, as the secure side sees it", "task_launch"),
    "launch_normal": ("SUBMIT until the job is started, normal world", ""),
}
_PAGES = {"commit": "COMMIT, a page of 512", "recall": "RECALL, a page of 512"}


def handovers(npu: dict[str, Any]) -> str:
    """Return what changing hands, starting jobs and keeping tables cost."""
    seconds, paper = npu["seconds"], npu["paper"]
    rows = [("from … until", "", "the paper's board")]
    for name, (label, key) in _TIMES.items():
        beside = f"{paper[key] * 1e3:.2f} ms" if key else ""
        rows.append((label, f"{seconds[name] * 1e3:.3f} ms", beside))
    rows += [(label, f"{seconds[name] * 1e9:.0f} ns", "") for name, label in _PAGES.items()]
    return markdown(rows)


def shares(share: dict[str, Any]) -> str:
    """Return what either world keeps of the NPU."""
    speeds, kept = share["per_second"], share["kept"]
    rows = [
        ("", "alone", "beside an idle secure world", "beside a busy one"),
        ("operations a second", *(f"{speeds[name]:.3g}" for name in ("alone", "idle", "busy"))),
        ("keeps", "", f"{kept['idle']:.1%}", f"{kept['busy']:.1%}"),
    ]
    if "secure_time" in share:
        rows.append(("the secure world had it", "", "", f"{share['secure_time']:.0%} of the time"))
    if "prefill_kept" in share:
        rows.append(("… and kept of its prompts' speed", "", "", f"{share['prefill_kept']:.1%}"))
    return markdown(rows)


def prompts(cells: list[dict[str, Any]]) -> str:
    """Return the cells of prompts with and without the NPU."""
    rows: list[tuple[str, ...]] = [("prompt", "CPU", "CPU and NPU", "gain", "products by the NPU", "answers")]
    for cell in cells:
        seconds = cell["seconds"]
        rows.append(
            (
                str(cell["prompt"]),
                *(f"{seconds[engine]:.2f}" for engine in ("cpu", "npu")),
                f"{cell['gain']:.2f}×",
                f"{cell['npu_products']:.0f}",
                "the same" if cell["same_answers"] else "NOT THE SAME",
            )
        )
    return markdown(rows)
