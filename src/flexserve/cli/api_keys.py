"""Commands on the file of API keys: api-key add, list, rm."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flexserve.cli import terminal
from flexserve.cli.options import AsJson

KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--file", metavar="FILE", help="File of the keys [as configured, else ~/.config/flexserve/keys]."
    ),
]
KeyName = Annotated[
    str, typer.Argument(metavar="NAME", show_default=False, help="Who has the key: logs say so.")
]


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command("api-key add", epilog="Example: flexserve api-key add alice --requests 60/minute")(add)
    app.command("api-key list", epilog="Example: flexserve api-key list --json")(show)
    app.command("api-key rm", epilog="Example: flexserve api-key rm alice")(remove)


def add(
    name: KeyName,
    *,
    rights: Annotated[
        str,
        typer.Option(metavar="RIGHTS", help="ask, recall, admin (everything), read; separated by commas."),
    ] = "ask",
    requests: Annotated[
        str | None, typer.Option(metavar="RATE", help="Requests it may send, as in 60/minute [any].")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="RATE", help="Tokens it may use, as in 100000/day [any].")
    ] = None,
    file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key, and print it: this once, because only its hash is kept."""
    import secrets

    from flexserve.normal.api.keys import Key, digest_of
    from flexserve.normal.key_file import add_key, parse_rights
    from flexserve.normal.quota import Rate

    secret = f"fs-{secrets.token_urlsafe(32)}"
    key = Key(
        name,
        digest_of(secret.encode()),
        parse_rights(rights),
        None if requests is None else Rate.parse(requests),
        None if tokens is None else Rate.parse(tokens),
    )
    path = _file(file)
    add_key(path, key)
    if as_json:
        return terminal.show_json({"name": name, "key": secret, "file": str(path)})
    typer.echo(secret)
    return terminal.note(
        f"{path} has its hash: `flexserve serve --api-key-file {path}`; a running one reads it at SIGHUP"
    )


def show(file: KeyFile = None, as_json: AsJson = False) -> None:
    """Show whose keys there are, what they may do and how much."""
    from flexserve.normal.api.keys import Right
    from flexserve.normal.key_file import list_keys

    keys = list_keys(_file(file))
    rights = {key.name: [right.value for right in Right if right in key.rights] for key in keys}
    if as_json:
        bounds = [(key.name, key.requests, key.tokens) for key in keys]
        return terminal.show_json(
            [
                {
                    "name": name,
                    "rights": rights[name],
                    "requests": requests and str(requests),
                    "tokens": tokens and str(tokens),
                }
                for name, requests, tokens in bounds
            ]
        )
    if not keys:
        return terminal.say("No keys yet. `flexserve api-key add NAME` makes one.")
    rows = [
        [key.name, ", ".join(rights[key.name]), str(key.requests or "any"), str(key.tokens or "any")]
        for key in keys
    ]
    return terminal.show_table(["NAME", "RIGHTS", "REQUESTS", "TOKENS"], rows)


def remove(name: KeyName, file: KeyFile = None, as_json: AsJson = False) -> None:
    """Remove an API key. A running server lets it in until SIGHUP."""
    from flexserve.normal.key_file import remove_key

    path = _file(file)
    remove_key(path, name)
    if as_json:
        terminal.show_json({"removed": name, "file": str(path)})
    else:
        terminal.say(f"removed {name} from {path}; a running server forgets it at SIGHUP")


def _file(given: Path | None) -> Path:
    """Return the file of the keys: the one given, else the configured one, else a usual one."""
    from flexserve import settings
    from flexserve.folders import config_folder

    return settings.load(api_key_file=given).api_key_file or config_folder() / "keys"
