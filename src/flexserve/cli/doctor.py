"""The command doctor: what this host keeps out, and what would make it keep out more."""

from __future__ import annotations

import dataclasses

import typer

from flexserve.cli import terminal
from flexserve.cli.options import AsJson


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command("doctor", epilog="Example: flexserve doctor --json")(doctor)


def doctor(as_json: AsJson = False) -> None:
    """Say what this host keeps out of a secure world, what it does not, and what puts it right.

    Platform linux. Exit status 1: its secure memory cannot be had here.
    """
    from flexserve.platforms.linux.doctor import State, findings, roads_to_a_new_process
    from flexserve.platforms.linux.roads import reach

    found, ways = list(findings()), roads_to_a_new_process()
    if as_json:
        terminal.show_json(
            {
                "label": reach(ways),
                "checks": [{**dataclasses.asdict(each), "state": each.state.value} for each in found],
                "roads": [
                    {"road": road.way.value, "open": road.open, "closed_by": road.closed_by or None}
                    for road in ways.values()
                ],
            }
        )
    else:
        terminal.show_table(
            ["CHECK", "STATE", "FOUND"], [[each.name, each.state.value, each.found] for each in found]
        )
        for each in found:
            if each.state is not State.GOOD:
                terminal.say(f"\n{each.name} would keep out {each.keeps_out}")
                terminal.say(
                    f"  {each.remedy}" if each.remedy else "  nothing puts this right on this machine"
                )
        terminal.say("\nroot's roads into a secure process that is started now:")
        for road in ways.values():
            terminal.say(f"  {'open  ' if road.open else 'closed'}  {road.way.value}{_why(road.closed_by)}")
        terminal.say(f"\n{reach(ways)}")
    if any(each.state is State.MISSING for each in found):
        raise typer.Exit(1)


def _why(closed_by: str) -> str:
    return f" ({closed_by})" if closed_by else ""
