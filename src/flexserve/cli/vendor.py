"""`flexserve vendor`: sealing a model once for many devices, and licences for those that are attested."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flexserve.cli import terminal
from flexserve.cli.options import AsJson
from flexserve.errors import CallerError, NormalWorldError

if TYPE_CHECKING:
    from flexserve.vendor.licensing import Terms

_DAY = 24 * 3600  # seconds

Keys = Annotated[Path, typer.Option("--keys", metavar="DIR", help="The vendor's folder of keys.")]
PolicyOption = Annotated[
    Path, typer.Option("--policy", metavar="FILE", help="What a good device is; it names their roots.")
]
Days = Annotated[
    int, typer.Option("--days", metavar="N", min=1, max=36500, help="How long a licence is good.")
]
Uses = Annotated[
    list[str] | None, typer.Option("--use", metavar="USE", help="text, vectors or ranks; repeat it [all].")
]


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command("vendor keygen", epilog="Example: flexserve vendor keygen keys")(keygen)
    app.command("vendor seal", epilog="Example: flexserve vendor seal m.gguf --keys keys --version 1")(seal)
    epilog = (
        "Example: flexserve vendor license m.flex --keys keys --policy good.toml --evidence e --nonce HEX"
    )
    app.command("vendor license", epilog=epilog)(license_)
    epilog = "Example: flexserve vendor serve-keys --keys keys --policy good.toml --days 30"
    app.command("vendor serve-keys", epilog=epilog)(serve_keys)


def keygen(
    folder: Annotated[Path, typer.Argument(metavar="DIR", show_default=False, help="Folder to make.")],
    as_json: AsJson = False,
) -> None:
    """Make a vendor's signing key. Devices are told its public key, vendor.pub."""
    from flexserve.vendor.keys import VendorKeys

    keys = VendorKeys.make(folder)
    if as_json:
        return terminal.show_json({"public_key": keys.public, "folder": str(folder)})
    terminal.say(f"vendor key: {keys.public}")
    return terminal.say(
        f"publish {folder / 'vendor.pub'}; keep the rest of {folder} secret, and a backup of it"
    )


def seal(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", show_default=False, help="The model's file.")],
    keys: Keys,
    *,
    version: Annotated[
        int, typer.Option("--version", metavar="N", min=1, help="Its version; each is higher.")
    ],
    name: Annotated[str | None, typer.Option("--name", help="The model's name [after the file].")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE.flex", help="The file to make [NAME.flex].")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Seal a GGUF once, for every device that gets a licence. The file is no secret; its key stays in DIR."""
    from flexserve.trusted.store.manifest import name_from
    from flexserve.trusted.store.split import whole_name
    from flexserve.vendor.content import seal_content
    from flexserve.vendor.keys import VendorKeys

    title = name or name_from(Path(whole_name(file.name)).stem)
    made = output or Path(f"{title}.flex")
    with terminal.progress(f"sealing {file.name}", silent=as_json) as progress:
        seal_content(file, made, VendorKeys(keys), name=title, version=version, progress=progress)
    if as_json:
        terminal.show_json({"name": title, "version": version, "path": str(made)})
    else:
        terminal.say(f"sealed {title} version {version}: {made}")


def license_(
    file: Annotated[Path, typer.Argument(metavar="FILE.flex", show_default=False, help="The sealed model.")],
    keys: Keys,
    policy: PolicyOption,
    evidence: Annotated[
        Path, typer.Option("--evidence", metavar="FILE", help="What the device said to the nonce.")
    ],
    nonce: Annotated[str, typer.Option("--nonce", metavar="HEX", help="The one that you gave the device.")],
    *,
    days: Days = 30,
    use: Uses = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="The licence to write [FILE.licence].")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a licence for one device, once its evidence is what the policy calls good.

    The device answers a nonce of yours with `flexserve attest --nonce HEX --evidence FILE`.
    """
    from flexserve.attestation.policy import load_policy
    from flexserve.vendor.content import read_content
    from flexserve.vendor.keys import VendorKeys
    from flexserve.vendor.licensing import issue, load_evidence, verified_device

    vendor, block, said = VendorKeys(keys), read_content(file), load_evidence(evidence)
    content = vendor.content(block.manifest.id_bytes)
    if content.content != block.digest:
        raise CallerError(f"{file} is not the file that was sealed.", hint="Name the original.")
    device = verified_device(said.chain, said.token, parse_nonce(nonce), load_policy(policy))
    licence = issue(vendor, content, device, _terms(days, use))
    made = output or file.with_suffix(".licence")
    try:
        made.write_bytes(licence)
    except OSError as error:
        raise CallerError(f"{made} cannot be written: {error.strerror}.", hint="Give --output.") from None
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    if as_json:
        unchecked = list(device.unchecked)
        return terminal.show_json(
            {
                "model": content.name,
                "version": content.version,
                "root": device.root.hex(),
                "path": str(made),
                "until": until.isoformat(),
                "unchecked": unchecked,
            }
        )
    terminal.say(f"licence of {content.name} version {content.version} for root {device.root.hex()}: {made}")
    terminal.say(f"good until {until:%Y-%m-%d %H:%M} UTC")
    if device.unchecked:
        terminal.warn(f"the policy does not name, so nobody checked: {', '.join(device.unchecked)}")
    return None


def serve_keys(
    keys: Keys,
    policy: PolicyOption,
    *,
    days: Days = 30,
    use: Uses = None,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="TCP port.")] = 7079,
    rate: Annotated[
        int, typer.Option("--rate", metavar="N", min=1, max=6000, help="Requests a minute of one address.")
    ] = 30,
) -> None:
    """Release keys over HTTP: each device that proves what runs on it, by the policy, gets a licence.

    Licences are sealed to the device and signed, so plain HTTP shows only who asks for what.
    """
    from flexserve.attestation.policy import load_policy
    from flexserve.vendor.keys import VendorKeys
    from flexserve.vendor.server import KeyRelease, KeyServer

    good = load_policy(policy)
    release = KeyRelease(VendorKeys(keys), good, _terms(days, use), log=terminal.note)
    if not good.layers:
        terminal.warn("the policy names no layers: these devices get keys whatever software they run.")
    try:
        server = KeyServer((host, port), release, a_minute=rate)
    except OSError as error:
        raise NormalWorldError(
            f"{host} port {port} cannot be listened at: {error.strerror}.", hint="Give another --port."
        ) from None
    with server:
        terminal.say(f"serving keys at http://{host}:{server.server_port}")
        server.serve_forever()


def parse_nonce(text: str) -> bytes:
    """Return the bytes of a nonce. Raises CallerError."""
    from flexserve.attestation.token import NONCE_SIZES

    try:
        nonce = bytes.fromhex(text)
    except ValueError:
        nonce = b""
    if len(nonce) not in NONCE_SIZES:
        raise CallerError(
            "A nonce is 8 to 64 bytes, in hexadecimal digits.", hint="32 random bytes are good."
        )
    return nonce


def _terms(days: int, use: list[str] | None) -> Terms:
    from flexserve.attestation.licence import USES
    from flexserve.vendor.licensing import Terms

    uses = tuple(use or USES)
    if unknown := set(uses) - set(USES):
        raise typer.BadParameter(
            f"there is no use {', '.join(sorted(unknown))}; there are {', '.join(USES)}."
        )
    return Terms(days * _DAY, uses)
