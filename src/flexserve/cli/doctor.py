"""The command doctor: what this host keeps out, and what would make it keep out more."""

from __future__ import annotations

import dataclasses

import typer

from flexserve.cli import terminal
from flexserve.cli.options import AsJson
from flexserve.cli.statuses import Status


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command("doctor", epilog="Example: flexserve doctor --json")(doctor)


def doctor(as_json: AsJson = False) -> None:
    """Say what this host keeps out of a secure world, what it does not, and what puts it right.

    Platform linux. Exit status 1: its secure memory cannot be had here.
    """
    from flexserve.platforms.linux.attack_vectors import describe
    from flexserve.platforms.linux.doctor import State, findings, vectors_against_a_new_process

    found, vectors = list(findings()), vectors_against_a_new_process()
    if as_json:
        terminal.show_json(
            {
                "label": describe(vectors),
                "checks": [{**dataclasses.asdict(each), "state": each.state.value} for each in found],
                "attack_vectors": [
                    {"vector": each.vector.value, "open": each.open, "closed_by": each.closed_by or None}
                    for each in vectors.values()
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
        terminal.say("\nroot's attack vectors against a secure process that is started now:")
        for vector in vectors.values():
            state = "open  " if vector.open else "closed"
            terminal.say(f"  {state}  {vector.vector.value}{_why(vector.closed_by)}")
        terminal.say(f"\n{describe(vectors)}")
    if any(each.state is State.MISSING for each in found):
        raise typer.Exit(Status.FAILED)


def _why(closed_by: str) -> str:
    return f" ({closed_by})" if closed_by else ""
