"""`flexserve attack`: try to break in, and say what stopped it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import typer

from flexserve.cli import terminal
from flexserve.cli.options import AsJson, Platform, SecureWorld
from flexserve.cli.statuses import Status

if TYPE_CHECKING:
    from flexserve.attacks.attempt import Attempt
    from flexserve.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("attack", epilog="Example: flexserve attack")(attack)


def attack(*, platform: Platform = None, secure_world: SecureWorld = None, as_json: AsJson = False) -> None:
    """Attack a secure world of its own as a compromised system would; say what stopped each attack.

    linux: root, through the kernel's interfaces; needs root. trustzone: the kernel of a machine that is
    emulated for this. `open`: root succeeds by a vector that the label calls open (`flexserve doctor`).
    Exit status 1: an attack broke a promise, or ended the machine; 3: none did, but not every one could be
    shown to be stopped.
    """
    from flexserve import settings
    from flexserve.attacks.attempt import Verdict

    # Whatever memory is configured, what is attacked has the kind that protects.
    chosen = settings.load(platform=platform, secure_world=secure_world, memory="secret")
    attempts: list[Attempt] = []
    try:
        for each in _attacks(chosen)(terminal.note):
            attempts.append(each)
            if not as_json:
                terminal.say(f"{each.verdict.value:10} {each.aim}: {each.detail}")
    finally:  # what was found so far is worth knowing when the scene breaks down
        if as_json:
            rows = [{**dataclasses.asdict(each), "verdict": each.verdict.name.lower()} for each in attempts]
            terminal.show_json({**_attacked(chosen), "attempts": rows})
    if any(each.verdict is Verdict.SUCCEEDED for each in attempts):
        raise typer.Exit(Status.FAILED)
    if any(each.verdict is Verdict.NOT_RUN for each in attempts):
        raise typer.Exit(Status.NOT_SHOWN)


def _attacks(chosen: Settings) -> Callable[[Callable[[str], None]], Iterator[Attempt]]:
    """Return what makes all attacks on what was chosen, and says meanwhile what it does."""
    if chosen.platform == "linux":
        from flexserve.attacks import linux

        return linux.run
    if chosen.is_inside:
        from flexserve.attacks.trustzone import inside

        return inside.run
    from flexserve.attacks import trustzone

    return trustzone.run


def _attacked(chosen: Settings) -> dict[str, str]:
    """Return what is attacked, as it stands in JSON."""
    if chosen.platform == "linux":
        return {"platform": chosen.platform}
    return {"platform": chosen.platform, "secure_world": chosen.secure_world}
