"""The command tune: better settings of the memory policy, found on simulated hosts."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flexserve.cli import terminal
from flexserve.cli.options import AsJson

if TYPE_CHECKING:
    from flexserve.simulator.load import Load

_STEP = 2.0  # seconds between two lines of progress


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command(
        "tune", epilog="Example: flexserve serve 2> serve.log, and days later flexserve tune serve.log"
    )(tune)


def tune(
    log: Annotated[
        Path | None,
        typer.Argument(
            metavar="LOG",
            show_default=False,
            help="What a server logged, as JSON lines [four built-in loads].",
        ),
    ] = None,
    *,
    trials: Annotated[int, typer.Option(min=1, max=100_000, help="Settings to try.")] = 160,
    hours: Annotated[float, typer.Option(min=0.1, max=1000, help="Simulated, of each built-in load.")] = 6.0,
    points: Annotated[
        int,
        typer.Option(min=0, max=1000, help="Points that it is measured from which settings matter; 0: not."),
    ] = 0,
    checks: Annotated[
        int, typer.Option(min=0, max=100, help="Built-in loads not seen before to check on.")
    ] = 3,
    seed: Annotated[int, typer.Option(min=0, max=999, help="The same seed gives the same result.")] = 0,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that simulate.")] = 2,
    journal: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where trials are kept, for the same search to go on.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the trials, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Search for better settings of the memory policy on simulated hosts.

    Two cores simulate five to ten hours a second; progress says how many. What is simulated is a model of
    a Linux host with the real policy: check a result on the host itself before you rely on it.
    Needs the extra: pip install 'flexserve[tune]'.
    """
    from flexserve.bench.tuning import main, report

    load = _recorded(log) if log else None
    plan = main.Plan(trials, points, checks, hours, seed, workers, journal, load)
    found = main.run(plan, terminal.note, _progress())
    if plot:
        report.plot(found, plot)
    if as_json:
        terminal.show_json(found)
    else:
        terminal.say(report.as_text(found))


def _recorded(log: Path) -> Load:
    """Return the load that a server logged. Raises CallerError for what is none."""
    from flexserve import settings
    from flexserve.cli.models import open_store
    from flexserve.errors import CallerError
    from flexserve.simulator import recording

    sizes = {each.name: each.size for each in open_store(settings.load()).list()}
    try:
        with log.open(encoding="utf-8", errors="replace") as lines:
            return recording.read(lines, sizes, log.name)
    except OSError as error:
        raise CallerError(f"{log} cannot be read: {error.strerror}.", hint="Name another file.") from None


def _progress() -> Callable[[float, float], None]:
    shown = time.monotonic()

    def show(hours: float, speed: float) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= _STEP:
            shown = now
            terminal.note(f"simulated {hours:.0f} hours, {speed:.1f} a second")

    return show
