"""What `flexserve top` shows, drawn for a terminal: memory over time, models, requests, decisions."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from flexserve.cli.terminal import printable
from flexserve.cli.watched import KINDS, Kind, Watched, parts_of
from flexserve.normal.reports import Decision, ModelState, Point, Present, RequestLine
from flexserve.units import format_size

_STATUSES = {"ok": "ready", "draining": "finishing"}
_STATES = {
    "loaded": "in memory",
    "partial": "partly in memory",
    "unloaded": "not in memory",
    "loading": "opening",
    "set_aside": "set aside",
}
_SIGNS = {"grant": "▲", "recall": "▼", "return": "▽", "refusal": "✕", "rewarm": "△"}
_SPLIT = (("queue", "grey62"), ("restore", "#c2557f"), ("prompt", "#9aa3b5"))
_WIDE = 110  # columns from which on requests and decisions stand side by side
_BAR = 24  # columns of a model's weights
_LEAST_CHART, _MOST_CHART = 5, 12  # rows
_ABSENT = "grey35"


def picture(watched: Watched, width: int, height: int, *, colours: bool = True) -> RenderableType:
    """Return all that is known, for `width` columns and `height` rows. `colours`: else glyphs tell kinds."""
    now = watched.present
    if now is None:
        return Text("Connecting…")
    chart = min(max(_LEAST_CHART, height // 4), _MOST_CHART)
    blocks: list[RenderableType] = [_head(now, gone=watched.gone)]
    if watched.points:
        blocks += [_titled("Memory", _sum(now, watched.points[-1]))]
        blocks += [
            _chart(watched.points, width, chart, colours=colours),
            _legend(watched.points[-1], colours),
        ]
    if now.models:
        blocks += [_titled("Models"), _models(now.models)]
    elif now.os is not None:
        blocks += [_titled("Models"), Text("none yet: flexserve add FILE.gguf", "dim")]
    used = 9 + chart + max(1, len(now.models))
    blocks.append(_lists(watched, width, max(3, height - used - 3)))
    return Group(*blocks)


def _head(now: Present, *, gone: bool) -> Text:
    status = "no connection, trying again" if gone else _STATUSES.get(now.status, now.status)
    good = now.status == "ok" and not gone
    head = Text.assemble(
        ("FlexServe", "bold"),
        "  ",
        ("●", "green" if good else "red"),
        f" {status}  ",
        (f"{now.running} running, {now.queued} waiting  ", "dim"),
        (now.protection.name, "bold" if now.protection.protected else "bold red"),
        ("" if now.protection.protected else ": UNPROTECTED", "bold red"),
        no_wrap=True,
        overflow="ellipsis",
    )
    head.append(f"  {printable(now.protection.summary)}", "dim")
    if now.error is not None:
        head.append(f"\n{printable(now.error.message)} {printable(now.error.hint)}", "yellow")
    return head


def _titled(title: str, about: str = "", more: Text | str = "") -> RenderableType:
    line = Text.assemble((title, "bold"), "  ", (about, "dim"), more, no_wrap=True, overflow="ellipsis")
    return Padding(line, (1, 0, 0, 0))


def _sum(now: Present, point: Point) -> str:
    parts = parts_of(point)
    held = sum(parts[kind.name] for kind in KINDS if kind.ours)
    budget = f"; it may have {format_size(now.budget.size)}" if now.budget else ""
    return f"FlexServe has {format_size(held)} of {format_size(point.total)}{budget}"


def _chart(points: Sequence[Point], width: int, height: int, *, colours: bool) -> Text:
    """Draw the machine's memory over the last minutes: each column a moment, two levels in each cell."""
    columns = max(10, width - 10)
    levels = 2 * height
    moments = [_levels(point, levels) for point in _sampled(points, columns)]
    chart = Text(no_wrap=True)
    for row in range(height):
        label = format_size(points[-1].total) if row == 0 else "0" if row == height - 1 else ""
        chart.append(f"{label:>9} ", "dim")
        for moment in moments:
            upper, lower = (moment[levels - 1 - 2 * row - half] if moment else None for half in (0, 1))
            _cell(chart, upper, lower, colours=colours)
        chart.append("\n")
    oldest, newest = _clock(points[-1].at - (columns - 1) * _step(points, columns)), _clock(points[-1].at)
    chart.append(f"{'':10}{oldest}{newest:>{columns - len(oldest)}}", "dim")
    return chart


def _step(points: Sequence[Point], columns: int) -> float:
    """Return the seconds of a column: all that is known fits, and a column is a second at least."""
    return max(points[-1].at - points[0].at, float(columns)) / columns


def _cell(chart: Text, upper: Kind | None, lower: Kind | None, *, colours: bool) -> None:
    if not colours:
        kind = lower or upper
        chart.append(kind.glyph if kind else " ")
    elif upper is None:
        chart.append("▄" if lower else " ", lower.colour if lower else "")
    else:
        chart.append("▀", upper.colour if lower is None else f"{upper.colour} on {lower.colour}")


def _sampled(points: Sequence[Point], columns: int) -> Iterator[Point | None]:
    """Yield a point for each column, the newest last; None where nobody watched."""
    newest, step = points[-1].at, _step(points, columns)
    at = 0
    for column in range(columns):
        moment = newest - (columns - 1 - column) * step
        while at + 1 < len(points) and abs(points[at + 1].at - moment) <= abs(points[at].at - moment):
            at += 1
        yield points[at] if abs(points[at].at - moment) <= max(step, 3.0) else None


def _levels(point: Point | None, levels: int) -> list[Kind | None]:
    """Return which kind each of `levels` equal parts of memory is, from the bottom; None: free."""
    if point is None:
        return []
    parts, sum_so_far = parts_of(point), 0
    found: list[Kind | None] = []
    for kind in KINDS[:-1]:
        sum_so_far += parts[kind.name]
        found += [kind] * (round(levels * sum_so_far / max(1, point.total)) - len(found))
    return [*found, *[None] * (levels - len(found))][:levels]


def _legend(point: Point, colours: bool) -> Text:
    parts = parts_of(point)
    legend = Text()
    for kind in KINDS:
        if parts[kind.name] or kind.always:
            legend.append("■" if colours else kind.glyph, kind.colour if colours else "")
            legend.append(f" {kind.name} ")
            legend.append(f"{format_size(parts[kind.name])}  ", "dim")
    return legend


def _models(models: Iterable[ModelState]) -> Table:
    table = _grid("left", "left", "left", "right", "right", "right")
    for model in models:
        state = "answering" if model.running else _STATES.get(model.state, model.state)
        error = "" if model.error is None else f": {printable(model.error.message)}"
        table.add_row(
            Text(printable(model.name)),
            Text(f"{state}{', pinned' if model.pinned else ''}{error}", "red" if model.error else "dim"),
            _bar(model),
            f"{format_size(model.resident)} of {format_size(model.weights)}",
            Text(f"KV {format_size(model.kv)}" if model.kv else "", "dim"),
            Text(f"scratch {format_size(model.scratch)}" if model.scratch else "", "dim"),
        )
    return table


def _bar(model: ModelState) -> Text:
    states = [state for state, count in model.chunks for _ in range(count)]
    bar = Text()
    for cell in range(_BAR):
        part = states[cell * len(states) // _BAR : max(1, (cell + 1) * len(states) // _BAR)]
        resident = 2 * part.count("resident") >= len(part) if part else cell < _BAR * model.resident_fraction
        bar.append("■" if resident else "□", KINDS[0].colour if resident else _ABSENT)
    return bar


def _lists(watched: Watched, width: int, rows: int) -> RenderableType:
    requests = sorted(watched.requests.values(), key=lambda request: -request.number)
    decisions = sorted(watched.decisions.values(), key=lambda decision: -decision.number)
    side_by_side = width >= _WIDE
    each = rows - 2 if side_by_side else max(1, (rows - 4) // 2)
    legend = _added(name for name, _ in _SPLIT)
    left = Group(
        _titled("Requests", "ms to the first token = ", legend),
        _requests(requests[:each]) if requests else Text("none yet", "dim"),
    )
    right = Group(
        _titled("Grants and recalls"),
        _decisions(decisions[:each]) if decisions else Text("none yet", "dim"),
    )
    if not side_by_side:
        return Group(left, right)
    both = Table.grid(padding=(0, 4, 0, 0), expand=True)
    both.add_column(ratio=1)
    both.add_column(ratio=1)
    both.add_row(left, right)
    return both


def _requests(requests: Sequence[RequestLine]) -> Table:
    table = _grid("left", "left", "right", "left", "left", least=(8, 6, 6, 21, 6))
    for request in requests:
        table.add_row(
            Text(_clock(request.at), "dim"),
            Text(printable(request.model)),
            f"{request.ttft:,.0f}" if request.ttft else "…",
            _split(request),
            Text(f"{request.prompt_tokens} → {request.tokens} {_end(request)}", "dim"),
        )
    return table


def _split(request: RequestLine) -> Text:
    """Say what the time to the first token went on. The time of the prompt has the waits for memory in it."""
    if not request.reason:
        return Text()
    waits = request.queue + request.restore
    spent = (request.queue, request.restore, max(0.0, request.ttft - waits))
    return _added(f"{part:,.0f}" for part in spent)


def _added(parts: Iterable[str]) -> Text:
    """Return the parts of a time to the first token, each in its colour."""
    line = Text()
    for (_, colour), part in zip(_SPLIT, parts, strict=True):
        line.append(" + " if line else "", "dim")
        line.append(part, colour)
    return line


def _end(request: RequestLine) -> str:
    if not request.reason:
        return "…"
    return "" if request.reason == "stop" else request.reason


def _decisions(decisions: Sequence[Decision]) -> Table:
    table = _grid("left", "left", "right", "left", least=(8, 9, 8, 6))
    for line in decisions:
        alarming = line.kind in ("recall", "refusal")
        table.add_row(
            Text(_clock(line.until), "dim"),
            Text(f"{_SIGNS.get(line.kind, '·')} {line.kind}", "red" if alarming else ""),
            format_size(line.size) if line.size else "",
            Text(printable(line.reason), "dim"),
        )
    return table


def _grid(*columns: Literal["left", "right"], least: Sequence[int] = ()) -> Table:
    """Return a table without lines; what does not fit is cut, but no column below its `least` width."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for side, width in itertools.zip_longest(columns, least):
        table.add_column(justify=side or "left", no_wrap=True, overflow="ellipsis", min_width=width)
    return table


def _clock(at: float) -> str:
    return datetime.datetime.fromtimestamp(at).strftime("%H:%M:%S")
