"""Why each ratio is what it is, in words, from the parts that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_STRAWMEN = {"strawman": "Strawman", "strawman_opt": "Strawman-OPT"}


def reasons(cells: Sequence[dict[str, Any]], name: str) -> list[str]:
    """Return one line for each cell and strawman. `name`: the key of what a cell is called."""
    return [_reason(cell, str(cell[name]), system) for cell in cells for system in _STRAWMEN]


def _reason(cell: dict[str, Any], label: str, system: str) -> str:
    theirs, ours = cell["seconds"][system], cell["seconds"]["flexserve"]
    computing = min(map(_computing, cell["parts"].values()))
    waiting, kept_waiting = cell["parts"][system]["waited"], cell["parts"]["flexserve"]["waited"]
    other = max(0.0, ours - _computing(cell["parts"]["flexserve"]) - kept_waiting)
    return (
        f"{label}, {cell[f'speedup_over_{system}']:.2f}× {_STRAWMEN[system]}: it stands still for memory for "
        f"{waiting / theirs:.0%} of {theirs:.2f} s ({_work(cell['parts'][system])}); FlexServe for "
        f"{kept_waiting / ours:.0%} of {ours:.2f} s, {other / ours:.0%} more go to giving memory back and to "
        f"switching. Computing alone takes {computing:.2f} s, so no system can be more than "
        f"{theirs / computing:.2f}× as fast."
    )


def _computing(parts: dict[str, float]) -> float:
    return parts["compute"] + parts.get("decode", 0.0)


def _work(parts: dict[str, float]) -> str:
    """Return what loaders did, in shares of their work."""
    work = {"getting": parts["allocate"], "reading": parts["load"], "decrypting": parts["decrypt"]}
    total = sum(work.values()) or 1.0
    return ", ".join(f"{share / total:.0%} {what} it" for what, share in work.items())
