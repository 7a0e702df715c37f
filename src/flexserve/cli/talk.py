"""Commands that talk to a model: run and chat. Neither writes a prompt or an answer to disk."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from flexserve.cli import terminal
from flexserve.cli.about_models import NO_TEMPLATE
from flexserve.cli.answers import checked, stream, told, whole
from flexserve.cli.conversation import Conversation
from flexserve.cli.message_input import messages_of_terminal
from flexserve.cli.options import (
    AsJson,
    Context,
    DeviceKeyFile,
    GuestCpus,
    GuestMemory,
    Host,
    MemoryKind,
    ModelsFolder,
    Npu,
    Platform,
    Port,
    SecureWorld,
    Threads,
    UnixSocket,
)
from flexserve.errors import CallerError

if TYPE_CHECKING:
    from flexserve.cli.worlds import Responder
    from flexserve.protocol.sampling import Sampling

MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", min=1, max=1 << 20, help="Longest answer, in tokens.")
]
Temperature = Annotated[
    float | None, typer.Option("--temperature", min=0, max=5, help="0: always the likeliest token [0.8].")
]
TopP = Annotated[float | None, typer.Option("--top-p", min=0, max=1, help="Nucleus sampling [0.95].")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, max=(1 << 63) - 1, help="Makes it repeatable.")]


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command("run", epilog='Example: flexserve run llama "Why is the sky blue?" --max-tokens 100')(run)
    app.command("chat", epilog="Example: flexserve chat llama")(chat)


def run(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False, help="A model's name.")],
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="PROMPT", show_default=False, help="- or nothing: standard input, or a chat."),
    ] = None,
    *,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer; repeatable.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Show tokens and times on standard error.")] = False,
    host: Host = None,
    port: Port = None,
    unix_socket: UnixSocket = None,
    platform: Platform = None,
    secure_world: SecureWorld = None,
    guest_memory: GuestMemory = None,
    guest_cpus: GuestCpus = None,
    npu: Npu = None,
    memory: MemoryKind = None,
    threads: Threads = None,
    context: Context = None,
    models: ModelsFolder = None,
    device_key: DeviceKeyFile = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say who answers.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask a model once; without a prompt, at a terminal, talk with it.

    A running server answers if there is one, else a secure world started for this command.
    """
    from flexserve import settings
    from flexserve.cli.worlds import responder
    from flexserve.protocol.prompts import ChatMessage

    _refuse_file(model)
    sampling = _sampling(max_tokens, temperature, top_p, seed, stop)
    own: dict[str, object] = {
        "platform": platform,
        "secure_world": secure_world,
        "guest_memory": guest_memory,
        "guest_cpus": guest_cpus,
        "npu": npu,
        "memory": memory,
        "threads": threads,
        "context": context,
        "models": models,
        "device_key": device_key,
    }
    chosen = settings.load(host=host, port=port, unix_socket=unix_socket, **own)
    talks = prompt is None and not as_json and sys.stdin.isatty()
    messages = [] if talks else [ChatMessage("user", _prompt(prompt))]
    with responder(chosen, ctx.obj, model, named=_named(host, port, unix_socket)) as who:
        if talks:
            _known_model(who, model)
        _introduce(who, own, verbose=verbose or talks, silent=as_json)
        _note_template(who, model)
        if talks:
            return Conversation(who, model, sampling, stats=stats).hold(messages_of_terminal())
        if as_json:
            return terminal.show_json(whole(who, model, messages, sampling))
        ending = stream(who, model, messages, sampling, said=[])
    if stats:
        terminal.note(told(ending))
    return None


def chat(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", show_default=False, help="Not needed if there is one.")
    ] = None,
    *,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    stats: Annotated[bool, typer.Option("--stats", help="Show tokens and times of each answer.")] = False,
    host: Host = None,
    port: Port = None,
    unix_socket: UnixSocket = None,
    platform: Platform = None,
    secure_world: SecureWorld = None,
    guest_memory: GuestMemory = None,
    guest_cpus: GuestCpus = None,
    npu: Npu = None,
    memory: MemoryKind = None,
    threads: Threads = None,
    context: Context = None,
    models: ModelsFolder = None,
    device_key: DeviceKeyFile = None,
) -> None:
    """Talk with a model.

    The conversation stays in memory and ends with the command.
    """
    from flexserve import settings
    from flexserve.cli.worlds import responder

    if model is not None:
        _refuse_file(model)
    sampling = _sampling(max_tokens, temperature, top_p, seed, None)
    own: dict[str, object] = {
        "platform": platform,
        "secure_world": secure_world,
        "guest_memory": guest_memory,
        "guest_cpus": guest_cpus,
        "npu": npu,
        "memory": memory,
        "threads": threads,
        "context": context,
        "models": models,
        "device_key": device_key,
    }
    chosen = settings.load(host=host, port=port, unix_socket=unix_socket, **own)
    with responder(chosen, ctx.obj, model, named=_named(host, port, unix_socket)) as who:
        model = _known_model(who, model) if model else _only_model(who)
        _introduce(who, own, verbose=True, silent=False)
        _note_template(who, model)
        Conversation(who, model, sampling, stats=stats).hold(messages_of_terminal())


def _introduce(who: Responder, own: Mapping[str, object], *, verbose: bool, silent: bool) -> None:
    """Say who answers. `own`: what was given for a secure world of this command's own, by name; None: not."""
    label = who.protection()
    if verbose and not silent:
        terminal.note(f"answered by {who.place}")
        terminal.note(f"protection: {label.name}: {label.summary}")
    unused = [f"--{name.replace('_', '-')}" for name, given in own.items() if given is not None]
    if unused and who.is_server and not silent:
        terminal.note(f"{who.place} answers, as it was started ({label.name}); not used: {', '.join(unused)}")
    if not label.protected and not silent:
        terminal.warn(terminal.UNPROTECTED if label.name == "plain" else "model memory is UNPROTECTED.")


def _note_template(who: Responder, model: str) -> None:
    if who.has_template(model) is False:
        terminal.note(f"{model} brings {NO_TEMPLATE}")


def _named(host: Host, port: Port, unix_socket: UnixSocket) -> bool:
    """Return whether the command line names a server."""
    return (host, port, unix_socket) != (None, None, None)


def _known_model(who: Responder, model: str) -> str:
    from flexserve.cli.worlds import require_known

    require_known(model, who.models())
    return model


def _only_model(who: Responder) -> str:
    from flexserve.cli.worlds import require_known

    names = who.models()
    require_known(None, names)
    if len(names) > 1:
        shown = ", ".join(names[:10])
        raise CallerError("There are several models.", hint=f"Name one: flexserve chat MODEL ({shown}).")
    return names[0]


def _refuse_file(model: str) -> None:
    if model.lower().endswith(".gguf") or "/" in model:
        raise CallerError(
            f"{model} is a file, and models are run by name.",
            hint=f"Add it first: flexserve add {model}",
            code="not_added",
        )


def _prompt(given: str | None) -> str:
    """Return the prompt, from standard input if it is not on the command line."""
    from flexserve.protocol.bounds import MAX_TEXT

    if given is not None and given != "-":
        return checked(given)
    data = sys.stdin.buffer.read(4 * MAX_TEXT + 1)  # a character has up to four bytes
    try:
        return checked(data.decode())
    except UnicodeDecodeError:
        raise CallerError("The prompt is not UTF-8 text.", hint="Convert it with iconv.") from None


def _sampling(
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    seed: int | None,
    stop: list[str] | None,
) -> Sampling:
    from flexserve.protocol.sampling import Sampling

    given = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": stop,
    }
    return Sampling(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
