"""Commands on a server: serve, ps, recall, stop."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flexserve.cli import reports, terminal
from flexserve.cli.options import (
    AsJson,
    Context,
    DeviceKeyFile,
    GuestCpus,
    GuestMemory,
    Host,
    KvTypeName,
    MemoryKind,
    ModelName,
    ModelsFolder,
    Npu,
    Platform,
    Port,
    SecureWorld,
    Threads,
    UnixSocket,
)
from flexserve.errors import CallerError
from flexserve.units import parse_size

if TYPE_CHECKING:
    from flexserve.normal.client import Client
    from flexserve.normal.main import ServeOptions
    from flexserve.settings import Settings


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command("serve", epilog="Example: flexserve serve --port 8080 --memory secret")(serve)
    app.command("ps", epilog="Example: flexserve ps --json")(ps)
    app.command("recall", epilog="Example: flexserve recall 512M --deadline 100")(recall)
    app.command("stop", epilog="Example: flexserve stop llama")(stop)


def serve(
    ctx: typer.Context,
    *,
    host: Host = None,
    port: Port = None,
    unix_socket: UnixSocket = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Serve only who has one of these keys (`api-key`) [everybody]."),
    ] = None,
    audit_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append a line for each request: who asked for what.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name of this server, as of a proxy before it; repeatable."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN", help="Web pages that may call it, as https://app.example; repeatable."
        ),
    ] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Serve other machines though there are no keys.")
    ] = None,
    platform: Platform = None,
    secure_world: SecureWorld = None,
    guest_memory: GuestMemory = None,
    guest_cpus: GuestCpus = None,
    npu: Npu = None,
    memory: MemoryKind = None,
    max_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="The most that models may take of memory, as in 4G [no limit]."),
    ] = None,
    threads: Threads = None,
    context: Context = None,
    kv_type: KvTypeName = None,
    parallel: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=64, help="Requests that a model answers at once [4]."),
    ] = None,
    kv_disk: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Disk that a model's sealed conversations may take [1GiB]."),
    ] = None,
    max_queue: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=1024, help="Requests that may wait [64].")
    ] = None,
    step_seconds: Annotated[
        str | None,
        typer.Option(
            "--step-seconds",
            metavar="TIME",
            help="How long nothing may move in a step of the engine: 10m, seconds [10m].",
        ),
    ] = None,
    keep_alive: Annotated[
        str | None,
        typer.Option(
            "--keep-alive",
            "--idle-seconds",
            metavar="TIME",
            help="How long an idle model keeps its memory: 10m, seconds, -1 for ever [5m].",
        ),
    ] = None,
    cache_threshold: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", min=0, max=1, help="Models with this share of the requests are cached [0.25]."
        ),
    ] = None,
    cache_top: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, max=1024, help="Without such, the N most asked ones are [3]."),
    ] = None,
    rewarm: Annotated[
        bool | None,
        typer.Option(
            "--rewarm/--no-rewarm",
            help="Bring such models back when nobody needs the memory [--rewarm].",
            show_default=False,
        ),
    ] = None,
    models: ModelsFolder = None,
    device_key: DeviceKeyFile = None,
    drain: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="What running requests get at the end: 5m, seconds [10s]."),
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        typer.Option(help="What to log on standard error [info]."),
    ] = None,
) -> None:
    """Serve the models over HTTP until Ctrl-C.

    It speaks the APIs of OpenAI, Anthropic, ollama and llama-server: point a client at http://127.0.0.1:7077
    (OpenAI's at /v1 below it). What runs at Ctrl-C or SIGTERM gets the time that --drain says. SIGHUP has
    keys and configuration read again.
    Nothing is encrypted on its way: with a --host that other machines reach, whoever is on the network
    between reads keys and conversations. Put a proxy that speaks HTTPS before it.
    """
    from flexserve import settings
    from flexserve.cli.machine import core_for
    from flexserve.cli.worlds import begin

    flags: dict[str, object] = {
        "host": host,
        "port": port,
        "unix_socket": unix_socket,
        "api_key_file": api_key_file,
        "audit_file": audit_file,
        "allowed_hosts": allowed_host or None,
        "allowed_origins": allow_origin or None,
        "insecure": insecure,
        "platform": platform,
        "secure_world": secure_world,
        "guest_memory": guest_memory,
        "guest_cpus": guest_cpus,
        "npu": npu,
        "memory": memory,
        "max_memory": max_memory,
        "threads": threads,
        "context": context,
        "kv_type": kv_type,
        "parallel": parallel,
        "kv_disk": kv_disk,
        "max_queue": max_queue,
        "step_seconds": step_seconds,
        "keep_alive": keep_alive,
        "cache_threshold": cache_threshold,
        "cache_top": cache_top,
        "rewarm": rewarm,
        "models": models,
        "device_key": device_key,
        "drain": drain,
        "log_level": log_level,
    }
    chosen = settings.load(**flags)
    if chosen.platform == "trustzone" and chosen.max_memory is not None:
        raise CallerError(
            "On the emulated machine its kernel decides how much models may take.",
            hint="Give --guest-memory instead of --max-memory.",
        )
    if chosen.memory == "plain":
        terminal.warn(terminal.UNPROTECTED)
    early = begin(ctx.obj, chosen.secure_options() if chosen.platform == "linux" else None)
    from flexserve.normal.imports import importing

    with importing():
        from flexserve.normal import main

    options = dataclasses.replace(
        _serve_options(chosen), early=early, reread=lambda: _serve_options(settings.load(**flags))
    )
    if chosen.platform == "trustzone":
        main.check(options)  # before seconds or, the first time, minutes are spent on a machine
    with core_for(chosen) as core:
        status = main.serve(dataclasses.replace(options, core=core))
    raise typer.Exit(status)


def _serve_options(chosen: Settings) -> ServeOptions:
    """Return how `chosen` settings have the normal world serve, wherever the secure one runs."""
    from flexserve.normal.main import ServeOptions

    return ServeOptions(
        chosen.secure_options(),
        host=None if chosen.host == "none" else chosen.host,
        port=chosen.port,
        unix_socket=chosen.server_socket(),
        drain_seconds=chosen.drain,
        api_keys=chosen.server_keys(),
        audit_file=chosen.audit_file,
        allowed_hosts=chosen.allowed_hosts,
        allowed_origins=chosen.allowed_origins,
        insecure=chosen.insecure,
        max_memory=chosen.max_memory,
        pins=chosen.pins,
        model_options=chosen.model_options,
        log_level=chosen.log_level,
    )


def ps(host: Host = None, port: Port = None, unix_socket: UnixSocket = None, as_json: AsJson = False) -> None:
    """Show what is in memory, as the OS counts it."""
    import msgspec

    with client(host, port, unix_socket) as server:
        states = server.states()
    if as_json:
        terminal.show_json(msgspec.to_builtins(states))
    else:
        reports.show_states(states)


def recall(
    size: Annotated[
        str | None, typer.Argument(metavar="SIZE", show_default=False, help="How much, as in 512M.")
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All that no running request uses.")] = False,
    deadline: Annotated[float, typer.Option(metavar="MS", min=0, max=60_000, help="Milliseconds.")] = 2000,
    host: Host = None,
    port: Port = None,
    unix_socket: UnixSocket = None,
    as_json: AsJson = False,
) -> None:
    """Take memory back; say what the OS really got.

    A running request keeps what it uses; the rest comes back as needed.
    """
    import msgspec

    if (size is None) != everything:
        raise typer.BadParameter("give a size, or --all (and not both).")
    wanted = None if size is None else bytes_of(size)
    with client(host, port, unix_socket) as server:
        result = server.recall(wanted, deadline_ms=deadline)
    if as_json:
        terminal.show_json(msgspec.to_builtins(result))
    else:
        reports.show_recall(result)


def stop(
    model: ModelName,
    host: Host = None,
    port: Port = None,
    unix_socket: UnixSocket = None,
    as_json: AsJson = False,
) -> None:
    """Let a model go: all its memory goes back now. The next request brings it in again.

    A running request keeps it until that has ended.
    """
    with client(host, port, unix_socket) as server:
        server.let_go(model)
    if as_json:
        terminal.show_json({"model": model})
    else:
        terminal.say(f"{model} goes as soon as no request runs")


def client(host: str | None, port: int | None, unix_socket: Path | None) -> Client:
    """Return a client of the configured server."""
    from flexserve import settings
    from flexserve.normal.client import Client

    return Client(settings.load(host=host, port=port, unix_socket=unix_socket).address())


def bytes_of(text: str) -> int:
    """Return the size that an argument names, in bytes. Raises typer.BadParameter."""
    try:
        return parse_size(text)
    except CallerError as error:
        raise typer.BadParameter(str(error)) from None
