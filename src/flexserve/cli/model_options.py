"""The command set: how one model is served, where that differs from the server's own settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexserve.cli import terminal
from flexserve.cli.options import AsJson, Host, ModelName, Port, UnixSocket
from flexserve.cli.server import client
from flexserve.errors import CallerError, UnknownModelError

if TYPE_CHECKING:
    from pathlib import Path

    from flexserve.normal.client import Client
    from flexserve.normal.reports import ModelState
    from flexserve.protocol.model_options import ModelOptions

_DEFAULT = "default"
_SWITCH = {"on": True, "off": False}
_WORDS: dict[Any, str] = {None: _DEFAULT, True: "on", False: "off"}


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command("set", epilog="Example: flexserve set llama context 32k")(set_option)


def set_option(
    model: ModelName,
    option: Annotated[
        str | None, typer.Argument(metavar="OPTION", show_default=False, help="context, kv, shift or draft.")
    ] = None,
    value: Annotated[
        str | None,
        typer.Argument(
            metavar="VALUE",
            show_default=False,
            help="Of context: 32k, 32768, or model (as trained). Of kv: f16, q8_0 or q4_0. "
            "Of shift: on or off. Of draft: a smaller model that guesses its next tokens. Or default.",
        ),
    ] = None,
    *,
    host: Host = None,
    port: Port = None,
    unix_socket: UnixSocket = None,
    as_json: AsJson = False,
) -> None:
    """Show or set how one model is served, whatever the server's settings are.

    Context and kv hold from when the model is opened next: at its next request, once it is idle. `default`
    sets an option back.
    """
    import msgspec

    if option is not None and value is None:
        raise typer.BadParameter("give a value, or no option to see all of them.")
    change = {} if option is None or value is None else {option: _value(option, value)}
    options = _apply(model, change, host, port, unix_socket)
    if as_json:
        return terminal.show_json({"model": model, "options": msgspec.to_builtins(options)})
    for name, set_to in msgspec.to_builtins(options).items():
        terminal.say(f"{name:8} {_WORDS.get(set_to, set_to)}")
    return None


def forget(model: str) -> None:
    """Drop the options and the pin of a model that is removed, at the configured server or for the next one.

    Another model that gets its name later is served as usual. A server that has it in memory lets it go, as
    soon as no request uses it.
    """
    import contextlib

    from flexserve import settings
    from flexserve.errors import FlexServeError
    from flexserve.normal.model_options import ModelChoices
    from flexserve.normal.pins import Pins
    from flexserve.protocol.model_options import ModelOptions

    chosen = settings.load()
    choices, pins = ModelChoices(chosen.model_options), Pins(chosen.pins)
    others = [name for name in pins.names if name != model]
    # The files say what holds from the next server on; one that runs is told, if it is to be reached.
    if model in choices.all:
        with contextlib.suppress(FlexServeError), client(None, None, None) as server:
            server.set_options(model, ModelOptions())
        choices.replace(model, ModelOptions(), trained=0)
    if model in pins.names:
        with contextlib.suppress(FlexServeError), client(None, None, None) as server:
            server.set_pins(others)
        pins.replace(others)
    if not chosen.address().is_silent():
        with contextlib.suppress(FlexServeError), client(None, None, None) as server:
            states = {state.name: state for state in server.states().models}
            if model in states and states[model].resident + states[model].kv + states[model].scratch:
                server.let_go(model)


def _value(option: str, value: str) -> Any:
    """Return what `value` means for `option`. Raises CallerError."""
    import msgspec

    from flexserve.normal.model_options import parse_context
    from flexserve.protocol.model_options import ModelOptions

    if option not in ModelOptions.__struct_fields__:
        known = ", ".join(ModelOptions.__struct_fields__)
        raise CallerError(f"There is no option {option!r}.", hint=f"There are: {known}.", code="bad_option")
    if value == _DEFAULT:
        return getattr(ModelOptions(), option)
    try:
        meant: Any = parse_context(value) if option == "context" else value
        meant = _SWITCH.get(value, value) if option == "shift" else meant
        return getattr(msgspec.convert({option: meant}, ModelOptions), option)
    except (ValueError, msgspec.ValidationError) as error:
        why = str(error).partition(" - at ")[0]
        raise CallerError(
            f"{value!r} is no value of {option}: {why}.", hint="See flexserve set --help.", code="bad_option"
        ) from None


def _apply(
    model: str, change: dict[str, Any], host: str | None, port: int | None, unix_socket: Path | None
) -> ModelOptions:
    """Change the options of a model on the configured server or, when none runs, for the next one.

    Returns them. Raises UnknownModelError, and what ModelChoices.replace raises.
    """
    import msgspec

    from flexserve import settings
    from flexserve.normal.address import NoServerError

    try:
        with client(host, port, unix_socket) as server:
            options = _state(server, model).options
            if change.get("draft") is not None:
                _state(server, change["draft"])
            if change:
                options = msgspec.structs.replace(options, **change)
                server.set_options(model, options)
            if change.get("draft") is not None and not _state(server, model).draft:
                terminal.note(
                    "no smaller model guesses on this server, whose models compute inside of the machine; "
                    "one with `--secure-world host` has it guess"
                )
            return options
    except NoServerError:
        from flexserve.cli.models import open_store
        from flexserve.normal.model_options import ModelChoices

        chosen = settings.load(host=host, port=port, unix_socket=unix_socket)
        store = open_store(chosen)
        with store.open(model) as sealed:
            trained = sealed.manifest.context_length
        if change.get("draft") is not None:
            store.require(change["draft"])
        choices = ModelChoices(chosen.model_options)
        if change:
            options = msgspec.structs.replace(choices.of(model), **change)
            choices.replace(model, options, trained=trained)
            terminal.note("no server runs; the next one will do so")
        return choices.of(model)


def _state(server: Client, model: str) -> ModelState:
    """Return what a server says of a model. Raises UnknownModelError."""
    for state in server.states().models:
        if state.name == model:
            return state
    raise UnknownModelError(f"There is no model {model!r}.", hint="`flexserve list` shows them.")
