"""`flexserve serve`: the normal world as a program. HTTP in front, a secure world behind.

Ctrl-C (or SIGTERM) drains: new requests get 503, running ones `drain_seconds` to finish, /health says so,
the secure world gives its memory back and ends, exit status 0. A second one ends both at once. SIGHUP has
keys and configuration read again; where the terminal was closed it drains, as for any program in one.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import ipaddress
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from flexserve.errors import CallerError, FlexServeError, NormalWorldError
from flexserve.normal import journal, service_manager
from flexserve.normal.api.admission import LOOPBACK_NAMES, Admission
from flexserve.normal.api.app import create_app
from flexserve.normal.api.cors import Origins
from flexserve.normal.api.keys import Key, Keys
from flexserve.normal.audit_file import AuditFile
from flexserve.normal.connections import Connection, Door
from flexserve.normal.guest import SecureCore
from flexserve.normal.launcher import TERM_GRACE
from flexserve.normal.model_options import ModelChoices
from flexserve.normal.pins import Pins
from flexserve.normal.process import Started
from flexserve.normal.reloading import Reloading
from flexserve.normal.world import DRAIN, World, running_world
from flexserve.policy.pressure import Limits
from flexserve.protocol.launch import SecureOptions

_BACKLOG = 128
_STDIN = 0


@dataclasses.dataclass(frozen=True, slots=True)
class ServeOptions:
    """How to serve. At least one of `host` and `unix_socket` is given."""

    secure: SecureOptions
    host: str | None = "127.0.0.1"
    port: int = 7077  # 0: any free one, told in the banner
    unix_socket: Path | None = None
    drain_seconds: float = DRAIN
    limits: Limits | None = None  # None: by the size of the machine
    max_memory: int | None = None  # bytes that are granted at most
    api_keys: Sequence[Key] = ()  # none: everybody is let in
    audit_file: Path | None = None  # gets a line for each request
    allowed_hosts: Sequence[str] = ()  # names of this server besides its own, as of a proxy before it
    allowed_origins: Sequence[str] = ()  # of web pages from elsewhere that may call it; "*": all
    insecure: bool = False  # serve other machines without keys
    pins: Path | None = None  # file of the pinned models; None: they are forgotten at the end
    model_options: Path | None = None  # file of how single models are served; None: as pins
    core: SecureCore | None = None  # the machine that the secure world runs on; None: this one
    early: Started | None = None  # a secure world that was started with the same options
    reread: Callable[[], ServeOptions] | None = None  # the configuration as it is now; None: it stays
    log_level: str = "info"
    log_json: bool | None = None  # None: for people when standard error is a terminal


def serve(options: ServeOptions) -> int:
    """Serve until told to stop, and return the exit status: 0 after draining.

    Raises CallerError for an address that cannot be bound, a key that cannot be used, or other machines
    that would be let in without one, the secure
    world's own reason when it cannot start, and PeerError when it died too often.
    """
    journal.configure(level=options.log_level, json=options.log_json)
    try:
        return asyncio.run(_serve(options))
    except KeyboardInterrupt:  # before the server was up: there was nothing to drain
        return 128 + signal.SIGINT


def check(options: ServeOptions) -> None:
    """Raise what `serve` raises of its addresses, and of who would be let in; nothing is left of the look."""
    with listening(options) as sockets:
        _refuse_open_door(sockets, Keys(options.api_keys), insecure=options.insecure)


async def _serve(options: ServeOptions) -> int:
    with listening(options) as sockets:
        admission = _admission_of(options, sockets)
        running = running_world(
            options.secure,
            drain=0,
            limits=options.limits,
            cap=options.max_memory,
            pins=Pins(options.pins),
            choices=ModelChoices(options.model_options),
            core=options.core,
            early=options.early,
        )
        async with running as world:
            closing = asyncio.Event()
            server = http_server(create_app(world, admission), closing, 0)  # the world drains before
            stop = stop_on_signals(world.kill)
            _reload_on_hangup(Reloading(options, world, admission, lambda now: _admission_of(now, sockets)))
            serving = asyncio.create_task(server.serve(sockets=sockets), name="http")
            failed = asyncio.create_task(world.failed(), name="secure-world-failed")
            told = asyncio.create_task(stop.wait(), name="stop-signal")
            await _show_banner(world, sockets)
            service_manager.tell("READY=1")
            await asyncio.wait({serving, failed, told}, return_when=asyncio.FIRST_COMPLETED)
            service_manager.tell("STOPPING=1")
            await world.drain(options.drain_seconds)  # /health says so meanwhile, and others hear 503
            closing.set()
            await serving
            told.cancel()
            if failed.done():
                raise failed.result()
            failed.cancel()
    return 0


def _admission_of(options: ServeOptions, sockets: list[socket.socket]) -> Admission:
    """Return whom `options` let in. Raises CallerError when that is everybody, and nobody asked for it."""
    keys, origins = Keys(options.api_keys), Origins(options.allowed_origins)
    if origins.any and not keys and not options.insecure:
        raise CallerError(
            "Any web page that is open on this machine would be served: there are no API keys.",
            hint="Give --api-key-file FILE, or name the pages' origins; --insecure serves everybody.",
            code="keys_needed",
        )
    _refuse_open_door(sockets, keys, insecure=options.insecure)
    audit = None if options.audit_file is None else AuditFile(options.audit_file)
    return Admission(_allowed_hosts(options), keys, origins, audit)


def _reload_on_hangup(reloading: Reloading) -> None:
    """Have SIGHUP reload. A terminal that is closed sends it, too: that one ends the server, by SIGTERM."""
    in_terminal = os.isatty(_STDIN)

    def on_hangup() -> None:
        if in_terminal and not os.isatty(_STDIN):
            journal.go_silent()
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            reloading.reload()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, on_hangup)


def http_server(app: FastAPI, closing: asyncio.Event, drain_seconds: float) -> uvicorn.Server:
    """Return the HTTP server; it stops accepting when `closing` is set, and finishes what runs.

    What runs gets `drain_seconds`, and what it takes to end a secure world after them.
    """
    config = uvicorn.Config(
        app,
        http=functools.partial(Connection, Door()),  # which bounds connections, so the server need not
        lifespan="off",
        ws="none",
        log_config=None,  # see normal.journal
        access_log=False,
        proxy_headers=False,  # nobody's X-Forwarded-For is believed
        server_header=False,
        date_header=False,  # kept up to date by the loop that is replaced below; see api.envelope
        timeout_graceful_shutdown=int(drain_seconds + 3 * TERM_GRACE),
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # signals are handled here, see stop_on_signals
    server.main_loop = closing.wait  # its own wakes up ten times a second to look whether it should end
    return server


def _allowed_hosts(options: ServeOptions) -> frozenset[str]:
    """Return the names a Host or Origin header may carry, besides the address that was connected to."""
    return LOOPBACK_NAMES | {name.lower() for name in (options.host, *options.allowed_hosts) if name}


def _refuse_open_door(sockets: list[socket.socket], keys: Keys, *, insecure: bool) -> None:
    """Raise CallerError when other machines can connect, and nothing asks who they are."""
    reachable = [
        sock
        for sock in sockets
        if sock.family != socket.AF_UNIX and not ipaddress.ip_address(sock.getsockname()[0]).is_loopback
    ]
    if reachable and not keys and not insecure:
        raise CallerError(
            f"Whoever reaches {address_of(reachable[0])} would be served: there are no API keys.",
            hint="Give --api-key-file FILE, or listen on 127.0.0.1; --insecure serves everybody.",
            code="keys_needed",
        )


def stop_on_signals(kill: Callable[[], None]) -> asyncio.Event:
    """Return an event that the first SIGINT or SIGTERM sets. The second calls `kill` and ends the process."""
    stop = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            kill()
            sys.stderr.write("flexserve: ended at once; running requests were cut off\n")
            os._exit(128 + number)
        sys.stderr.write("flexserve: finishing what runs; once more to end at once\n")
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    return stop


async def _show_banner(world: World, sockets: list[socket.socket]) -> None:
    with contextlib.suppress(FlexServeError):  # died just now; the supervisor says so
        names = [model.name for model in await world.models()]
        protection = world.protection
        lines = [f"FlexServe listens on {', '.join(address_of(sock) for sock in sockets)}"]
        lines.append(f"protection: {protection.name}: {protection.summary}")
        lines.append(f"models: {', '.join(names) if names else 'none yet'}")
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()


# ---- sockets


@contextlib.contextmanager
def listening(options: ServeOptions) -> Iterator[list[socket.socket]]:
    """Bind what `options` name, and close it (and remove the Unix socket's file) on the way out.

    Raises CallerError when an address is taken or cannot be bound.
    """
    with contextlib.ExitStack() as stack:
        sockets = []
        if options.host is not None:
            sockets.append(stack.enter_context(tcp_socket(options.host, options.port)))
        if options.unix_socket is not None:
            path = options.unix_socket.absolute()
            sockets.append(stack.enter_context(_unix_socket(path)))
            stack.callback(path.unlink, missing_ok=True)
        if not sockets:
            raise CallerError("There is nothing to listen on.", hint="Give a host or a Unix socket.")
        yield sockets


def _reason(error: OSError) -> str:
    """Return why an address cannot be had, without the address that `socket` adds."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)


def tcp_socket(host: str, port: int) -> socket.socket:
    """Listen on an address. Raises CallerError when it is taken or cannot be bound."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        raise CallerError(
            f"Cannot listen on {host} port {port}: {_reason(error)}.",
            hint="Choose another with --port, or stop the program that uses it.",
            code="address_unavailable",
        ) from None
    # Connections inherit it. asyncio sets it only where a socket names its protocol, which this one does not;
    # without it the first token waits some 40 ms for the acknowledgement of the header.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _unix_socket(path: Path) -> socket.socket:
    """Bind `path` for this user only; a socket that a dead server left behind is replaced."""
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(str(path))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise CallerError(
            f"Cannot listen on {path}: {_reason(error)}.",
            hint="Choose another path, or stop the program that uses it.",
            code="address_unavailable",
        ) from None
    finally:
        os.umask(before)
    return sock


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise NormalWorldError(
                f"{path} cannot be examined: {error.strerror}.", hint="Choose another path."
            ) from None


def address_of(sock: socket.socket) -> str:
    """Return where `sock` listens, as clients write it."""
    name = sock.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"http://{host}:{name[1]}"
