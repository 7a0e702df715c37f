"""`flexserve attack`: try to break in, and say what stopped it."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import typer

from flexserve.cli import terminal
from flexserve.cli.options import AsJson
from flexserve.cli.statuses import Status


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("attack", epilog="Example: flexserve attack")(attack)


def attack(
    *,
    platform: Annotated[
        Literal["linux", "trustzone"], typer.Option(help="Whose protection is attacked.")
    ] = "linux",
    as_json: AsJson = False,
) -> None:
    """Attack a secure world of its own as a compromised system would; say what stopped each attack.

    linux: root, through the kernel's interfaces; needs root. trustzone: the kernel of a machine that is
    emulated for this. `open`: root succeeds by a vector that the label calls open (`flexserve doctor`).
    Exit status 1: an attack broke a promise, or ended the machine; 3: none did, but not every one could be
    shown to be stopped.
    """
    from flexserve.attacks.attempt import Attempt, Verdict

    if platform == "linux":
        from flexserve.attacks import linux as attacks
    else:
        from flexserve.attacks import trustzone as attacks  # type: ignore[no-redef]

    attempts: list[Attempt] = []
    try:
        for each in attacks.run(terminal.note):
            attempts.append(each)
            if not as_json:
                terminal.say(f"{each.verdict.value:10} {each.aim}: {each.detail}")
    finally:  # what was found so far is worth knowing when the scene breaks down
        if as_json:
            rows = [{**dataclasses.asdict(each), "verdict": each.verdict.name.lower()} for each in attempts]
            terminal.show_json({"platform": platform, "attempts": rows})
    if any(each.verdict is Verdict.SUCCEEDED for each in attempts):
        raise typer.Exit(Status.FAILED)
    if any(each.verdict is Verdict.NOT_RUN for each in attempts):
        raise typer.Exit(Status.NOT_SHOWN)
