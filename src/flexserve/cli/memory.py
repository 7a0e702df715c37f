"""Commands on a server's memory: free, limit, pin, unpin, log."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexserve.cli import terminal
from flexserve.cli.options import AsJson, Host, ModelName, Port, UnixSocket
from flexserve.cli.server import bytes_of, client
from flexserve.cli.statuses import Status
from flexserve.units import format_size

if TYPE_CHECKING:
    from flexserve.normal.reports import Decision, NeedResult

_POLL = 0.5  # seconds between two looks of `log --follow`


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command("free", epilog="Example: flexserve free 2G --hold 60")(free)
    app.command("limit", epilog="Example: flexserve limit 4G")(limit)
    app.command("pin", epilog="Example: flexserve pin llama")(pin)
    app.command("unpin", epilog="Example: flexserve unpin llama")(unpin)
    app.command("log", epilog="Example: flexserve log --follow")(log)


def free(
    size: Annotated[str, typer.Argument(metavar="SIZE", show_default=False, help="How much, as in 2G.")],
    *,
    hold: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, max=3600, help="How long it stays free of models.")
    ] = 30,
    deadline: Annotated[float, typer.Option(metavar="MS", min=0, max=60_000, help="Milliseconds.")] = 2000,
    host: Host = None,
    port: Port = None,
    unix_socket: UnixSocket = None,
    as_json: AsJson = False,
) -> None:
    """Have memory available for another program.

    Nothing is taken back when that much is available already. Exits with 1 when it is not, after all.
    """
    import msgspec

    wanted = bytes_of(size)
    with client(host, port, unix_socket) as server:
        result = server.need(wanted, deadline_ms=deadline, hold_seconds=hold)
    if as_json:
        terminal.show_json(msgspec.to_builtins(result))
    else:
        _show_need(result)
    if not result.satisfied:
        raise typer.Exit(Status.FAILED)


def limit(
    size: Annotated[
        str | None,
        typer.Argument(metavar="SIZE", show_default=False, help="As in 4G, or the word none [show it]."),
    ] = None,
    *,
    host: Host = None,
    port: Port = None,
    unix_socket: UnixSocket = None,
    as_json: AsJson = False,
) -> None:
    """Show or set the most that models may take of memory, until the server ends.

    What is beyond it comes back as soon as running requests can spare it.
    """
    import msgspec

    with client(host, port, unix_socket) as server:
        if size is not None:
            server.set_cap(None if size.lower() == "none" else bytes_of(size))
        state = server.memory()
    if as_json:
        return terminal.show_json(msgspec.to_builtins(state))
    cap = "none" if state.cap is None else format_size(state.cap)
    terminal.say(f"limit    {cap}")
    terminal.say(f"granted  {format_size(state.granted)}")
    terminal.say(f"budget   {format_size(state.budget.size)}: {state.budget.reason}")
    return None


def pin(
    model: ModelName,
    host: Host = None,
    port: Port = None,
    unix_socket: UnixSocket = None,
    as_json: AsJson = False,
) -> None:
    """Keep a model's weights in memory.

    They go only when the OS needs a definite amount that nothing else can meet.
    """
    pins = _repin(host, port, unix_socket, add=model)
    _show_pins(f"pinned {model}", pins, as_json=as_json)


def unpin(
    model: ModelName,
    host: Host = None,
    port: Port = None,
    unix_socket: UnixSocket = None,
    as_json: AsJson = False,
) -> None:
    """Let a model's weights be taken back like any others."""
    pins = _repin(host, port, unix_socket, remove=model)
    _show_pins(f"unpinned {model}", pins, as_json=as_json)


def log(
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    host: Host = None,
    port: Port = None,
    unix_socket: UnixSocket = None,
    as_json: AsJson = False,
) -> None:
    """Show what was decided about memory, and why. With --json, one object per line."""
    from flexserve.errors import PeerError

    shown = 0
    with client(host, port, unix_socket) as server:
        while True:
            page = server.decisions(after=shown)
            if shown and page.settled < shown:
                raise PeerError("The server was restarted.", hint="Start `flexserve log` again.")
            for line in page.decisions:
                if not follow or line.number <= page.settled:
                    _show_decision(line, as_json=as_json)
                    shown = line.number
            if not follow:
                return
            time.sleep(_POLL)


def _repin(
    host: str | None, port: int | None, unix_socket: Path | None, *, add: str = "", remove: str = ""
) -> list[str]:
    """Change the pins of the configured server or, when none runs, of the next one; return them all."""
    from flexserve import settings
    from flexserve.errors import UnknownModelError
    from flexserve.normal.address import NoServerError

    def changed(names: list[str]) -> list[str]:
        if remove and remove not in names:
            raise UnknownModelError(f"{remove} is not pinned.", hint="`flexserve ps` shows what is.")
        return [name for name in {*names, *([add] if add else [])} if name != remove]

    try:
        with client(host, port, unix_socket) as server:
            names = changed(server.memory().pins)
            server.set_pins(names)
            return sorted(names)
    except NoServerError:
        from flexserve.cli.models import open_store
        from flexserve.normal.pins import Pins

        chosen = settings.load(host=host, port=port, unix_socket=unix_socket)
        if add and add not in [manifest.name for manifest in open_store(chosen).list()]:
            raise UnknownModelError(
                f"There is no model {add!r}.", hint="`flexserve list` shows the models."
            ) from None
        pins = Pins(chosen.pins)
        names = changed(list(pins.names))
        pins.replace(names)
        terminal.note("no server runs; the next one will do so")
        return list(pins.names)


def _show_pins(done: str, pins: list[str], *, as_json: bool) -> None:
    if as_json:
        terminal.show_json({"pins": pins})
    else:
        terminal.say(done)


def _show_need(result: NeedResult) -> None:
    available, asked = format_size(result.after.available), format_size(result.asked)
    if result.freed or result.plan:
        terminal.say(f"the OS got {format_size(result.freed)} back in {result.elapsed_ms:.1f} ms")
        terminal.say(f"given up: {', '.join(result.plan) or 'nothing'}")
    verdict = "" if result.satisfied else f", less than {asked}: no more could be spared"
    terminal.say(f"{available} are available{verdict}")
    if result.after.guest:
        terminal.say("nothing keeps it free: the guest's kernel gives memory to whoever asks next")
    else:
        terminal.say(f"no model gets any of {asked} for {result.hold_seconds:.0f} s")


def _show_decision(line: Decision, *, as_json: bool) -> None:
    import json

    import msgspec

    if as_json:
        builtins: Any = msgspec.to_builtins(line)
        return typer.echo(json.dumps(builtins, ensure_ascii=False))
    at = datetime.datetime.fromtimestamp(line.at).strftime("%Y-%m-%d %H:%M:%S")
    times = f" in {line.count} parts" if line.count > 1 else ""
    size = f"{format_size(line.size)}{times}: " if line.size else ""
    model = f"{line.model}: " if line.model else ""
    return terminal.say(f"{at}  {line.kind:8}{size}{model}{line.reason}")
