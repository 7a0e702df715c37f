"""Commands on the device key: key export, key import."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flexserve.cli import terminal
from flexserve.cli.options import AsJson, DeviceKeyFile

_MAX_LINE = 4096  # bytes

ExportedFile = Annotated[
    Path, typer.Argument(metavar="FILE", show_default=False, help="The file under a passphrase.")
]


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command("key export", epilog="Example: flexserve key export flexserve-key.txt")(export)
    app.command("key import", epilog="Example: flexserve key import flexserve-key.txt")(import_)


def export(file: ExportedFile, device_key: DeviceKeyFile = None, as_json: AsJson = False) -> None:
    """Write the device key to a file, under a passphrase: a backup, or to take the store elsewhere.

    The passphrase is asked for, or the first line of a pipe. Who has file and passphrase can open every model
    of this store, and claim to be this device.
    """
    from flexserve import settings
    from flexserve.trusted.store.key_export import export_key

    chosen = settings.load(device_key=device_key)
    identity = export_key(chosen.device_key, _passphrase(twice=True), file)
    if as_json:
        terminal.show_json({"device": identity, "file": str(file)})
    else:
        terminal.say(f"exported the key of device {identity[:16]} to {file}")


def import_(file: ExportedFile, device_key: DeviceKeyFile = None, as_json: AsJson = False) -> None:
    """Take over a device key that `key export` wrote: what was sealed for it can be opened then."""
    from flexserve import settings
    from flexserve.trusted.store.key_export import import_key

    chosen = settings.load(device_key=device_key)
    identity = import_key(file, _passphrase(twice=False), chosen.device_key)
    if as_json:
        terminal.show_json({"device": identity, "file": str(chosen.device_key)})
    else:
        terminal.say(f"this device is {identity[:16]} now; its key is in {chosen.device_key}")


def _passphrase(*, twice: bool) -> str:
    if sys.stdin.isatty():
        return str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=twice, err=True))
    return sys.stdin.readline(_MAX_LINE).rstrip("\r\n")
