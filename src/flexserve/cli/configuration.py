"""The command config."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from flexserve.cli import terminal
from flexserve.cli.options import AsJson


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command("config", epilog="Example: FLEXSERVE_PORT=8080 flexserve config")(config)


def config(
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of the file instead.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the configuration and where it comes from."""
    from flexserve import settings

    if schema:
        return terminal.show_json(settings.schema())
    chosen = settings.load()
    values = chosen.model_dump(mode="json")
    if (socket := chosen.effective_socket()) is not None:
        values["unix_socket"] = str(socket)
    if as_json:
        return terminal.show_json(
            {name: {"value": value, "from": settings.origin(name)} for name, value in values.items()}
        )
    rows = [[name, _as_in_the_file(value), settings.origin(name)] for name, value in values.items()]
    terminal.show_table(["SETTING", "VALUE", "FROM"], rows)
    terminal.note(f"file: {settings.config_file()}{'' if settings.config_file().exists() else ' (none)'}")
    return None


def _as_in_the_file(value: Any) -> str:
    """Return a value as config.toml has it, without the quotes of a text; "" for none."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)
