"""The command top: memory, models, requests and decisions of a server, as they change."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from flexserve.cli.options import AsJson, Host, Port, UnixSocket
from flexserve.cli.server import client
from flexserve.errors import PeerError

if TYPE_CHECKING:
    from rich.live import Live

    from flexserve.cli.watched import Watched
    from flexserve.normal.client import Client

_RETRY = 1.0  # seconds


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command("top", epilog="Example: flexserve top --once")(top)


def top(
    *,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    host: Host = None,
    port: Port = None,
    unix_socket: UnixSocket = None,
    as_json: AsJson = False,
) -> None:
    """Watch a server: memory over time, models, requests, grants and recalls. q ends it.

    The same is a page at the server's address, with a chat. Where the output is no terminal, it looks once.
    With --json, each event is a line.
    """
    from flexserve.cli.watched import Watched

    watched = Watched()
    with client(host, port, unix_socket) as server, contextlib.suppress(KeyboardInterrupt):
        if as_json:
            _show_lines(server, follow=not once)
        elif once or not sys.stdout.isatty():
            for event in server.events(follow=False):
                watched.take(event)
            _show_once(watched)
        else:
            _show_for_ever(server, watched)


def _show_lines(server: Client, *, follow: bool) -> None:
    import msgspec

    for event in server.events(follow=follow):
        typer.echo(json.dumps(msgspec.to_builtins(event), ensure_ascii=False))


def _show_once(watched: Watched) -> None:
    from rich.console import Console

    from flexserve.cli.top_view import picture

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    colours = console.color_system is not None and not console.no_color
    console.print(picture(watched, console.width, 40, colours=colours))


def _show_for_ever(server: Client, watched: Watched) -> None:
    """Show `server` until somebody presses q or Ctrl-C. A server that goes away is waited for."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    with _keys(), Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            try:
                for event in server.events(follow=True):
                    watched.take(event)
                    _draw(live, watched)
            except PeerError:
                if watched.present is None:
                    raise
            watched.gone = True
            _draw(live, watched)
            time.sleep(_RETRY)


def _draw(live: Live, watched: Watched) -> None:
    from flexserve.cli.top_view import picture

    console = live.console
    colours = console.color_system is not None and not console.no_color
    live.update(picture(watched, console.width, console.height, colours=colours), refresh=True)


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Take q for Ctrl-C inside the block, and show no key that is pressed."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    threading.Thread(target=_wait_for_q, daemon=True).start()
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _wait_for_q() -> None:
    while key := os.read(sys.stdin.fileno(), 1):
        if key in (b"q", b"Q"):
            os.kill(os.getpid(), signal.SIGINT)
            return
