"""What the terminal sees: answers on standard output, everything about them on standard error.

Text from elsewhere (models, servers, file names) may hold control sequences that would take over
a terminal; it passes `printable` first.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import typer

from flexserve.errors import FlexServeError
from flexserve.units import format_size

JSON_ASKED = "flexserve.json"  # key of a command's context: --json was given
_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
LAST_SECOND = 253_402_300_799  # of the calendar's year 9999
_PLAIN_STEP = 2.0  # seconds between two lines of progress where there is no terminal

UNPROTECTED = "--memory plain: model memory is UNPROTECTED. Root, debuggers and swap can read it."

Progress = Callable[[int, int], None]  # bytes done, bytes in total


def printable(text: str) -> str:
    """Return `text` without control characters, new lines and tabs excepted."""
    return text.translate(_CONTROLS)


def say(text: str = "") -> None:
    """Print one line of a command's result."""
    typer.echo(printable(text))


def note(text: str) -> None:
    """Print one line about what is going on, on standard error."""
    typer.echo(printable(text), err=True)


def warn(text: str) -> None:
    """Print a warning, on standard error."""
    typer.secho(printable(f"warning: {text}"), err=True, fg=typer.colors.YELLOW, bold=True)


def show_json(data: Any) -> None:
    """Print `data` as JSON, on standard output."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


def show_error(error: FlexServeError, *, as_json: bool = False) -> None:
    """Print `error` and what to do about it, on standard error."""
    if as_json:
        typer.echo(json.dumps({"error": error_object(error)}, ensure_ascii=False), err=True)
        return
    typer.secho(printable(f"error: {error.message}"), err=True, fg=typer.colors.RED)
    if error.hint:
        note(f"hint: {error.hint}")


def error_object(error: FlexServeError) -> dict[str, str]:
    """Return `error` as it stands in JSON."""
    return {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "blame": error.blame.value,
    }


def show_table(columns: list[str], rows: list[list[str]], *, right: tuple[str, ...] = ()) -> None:
    """Print a table; the columns named in `right` are aligned to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a pipe has no width: no cell is folded for one
    console.print(table)


@contextlib.contextmanager
def progress(title: str, *, silent: bool = False) -> Iterator[Progress]:
    """Show progress in bytes on standard error: a bar on a terminal, else a line now and then."""
    if silent:
        yield lambda _done, _total: None
    elif sys.stderr.isatty():
        with _bar(title) as show:
            yield show
    else:
        yield _lines(title)


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.table import Column
    from rich.text import Text

    class Bytes(ProgressColumn):
        def render(self, task: Task) -> Text:
            if task.total is None:
                return Text()
            speed = f" · {format_size(int(task.speed))}/s" if task.speed else ""
            return Text(f"{format_size(int(task.completed))} of {format_size(int(task.total))}{speed}")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        Bytes(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(printable(title)), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(title: str) -> Progress:
    began = shown = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if done == total or now - shown >= _PLAIN_STEP:
            shown = now
            speed = format_size(int(done / max(now - began, 1e-3)))
            note(f"{title}: {100 * done // max(total, 1)} % of {format_size(total)}, {speed}/s")

    return show
