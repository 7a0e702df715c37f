"""Commands of attestation: attest asks a running server who it is, measure says what is good."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from flexserve.cli import terminal
from flexserve.cli.options import AsJson, Host, Platform, Port, SecureWorld, UnixSocket
from flexserve.cli.server import client
from flexserve.errors import CallerError

if TYPE_CHECKING:
    from flexserve.attestation.policy import Policy
    from flexserve.emulator.build import Images
    from flexserve.normal.attested_server import AttestedServer
    from flexserve.settings import Settings

PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--policy", metavar="FILE", help="What a good server is [policy.toml beside config.toml, if any]."
    ),
]

PolicySigner = Annotated[
    Path | None,
    typer.Option(
        metavar="KEY.pem",
        help="Public key of who has to have signed the policy; the signature is in FILE.sig.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command("attest", epilog="Example: flexserve attest --policy policy.toml")(attest)
    app.command("measure", epilog="Example: flexserve measure --policy policy.toml")(measure)


def attest(
    policy: PolicyFile = None,
    *,
    policy_signer: PolicySigner = None,
    host: Host = None,
    port: Port = None,
    unix_socket: UnixSocket = None,
    nonce: Annotated[
        str | None, typer.Option("--nonce", metavar="HEX", help="Of who wants the evidence [a new one].")
    ] = None,
    evidence: Annotated[
        Path | None,
        typer.Option("--evidence", metavar="FILE", help="Write what the server said, unverified."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a running server who it is, verify what it says against a policy, and show it.

    Exit status 1: it is not what the policy calls good; the error names the field. With --evidence it is only
    written down, for a vendor that verifies it by a nonce and a policy of its own.
    """
    if (nonce is None) != (evidence is None):
        raise typer.BadParameter("--nonce and --evidence go together.")
    if nonce is not None and evidence is not None:
        from flexserve.cli.vendor import parse_nonce

        with client(host, port, unix_socket) as server:
            said = server.attestation(parse_nonce(nonce))
        return _write(evidence, msgspec.json.encode(said).decode(), "--evidence")
    from flexserve.normal.attested_server import attested_server
    from flexserve.normal.known_roots import KnownRoots

    with client(host, port, unix_socket) as server:
        found = attested_server(server, policy_of(policy, policy_signer), KnownRoots(known_roots_file()))
    if as_json:
        terminal.show_json(verification(found))
    else:
        _show(found)
    return None


def measure(
    *,
    platform: Platform = None,
    secure_world: SecureWorld = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="FILE", help="Write a policy that asks for these.")
    ] = None,
    with_models: Annotated[
        bool, typer.Option("--with-models", help="The policy names this store's models, too, and no others.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure what a secure world of this installation consists of: the good values for a policy.

    On trustzone these are the layers of the emulated machine, too, which is built if need be.
    Two installations of one version have the same, wherever they lie. On another machine `engine` differs if
    its CPU is another one, since llama.cpp is built for it, and `python` if its Python is. Models are those
    of this store, by the SHA-256 of their GGUF.
    """
    from flexserve import settings
    from flexserve.attestation.policy import ModelRule, Policy, write_policy

    chosen = settings.load(platform=platform, secure_world=secure_world)
    layers, measurements = _inside() if chosen.is_inside else _beside(chosen.platform)
    models = _models(chosen)
    if policy is not None:
        good = Policy(
            layers={name: [digest.hex()] for name, digest in layers.items()},
            measurements={name: [digest.hex()] for name, digest in measurements.items()},
            models=[ModelRule(digest) for digest in models.values()] if with_models else [],
        )
        _write(policy, write_policy(good))
    if as_json:
        shown = {
            title: {name: digest.hex() for name, digest in table.items()}
            for title, table in (("layers", layers), ("measurements", measurements))
        }
        terminal.show_json({**shown, "models": models})
        return
    rows = {name: digest.hex() for name, digest in measurements.items()}
    rows |= {f"layer {name}": digest.hex() for name, digest in layers.items()}
    rows |= {f"model {name}": sha256 for name, sha256 in models.items()}
    width = max(14, *map(len, rows))
    for name, value in rows.items():
        terminal.say(f"{name:{width}} {value}")


def policy_of(path: Path | None, signer: Path | None = None) -> Policy:
    """Return the policy in `path`, or this user's, or the one that names nothing. Raises CallerError."""
    from flexserve.attestation.policy import Policy, load_policy
    from flexserve.folders import config_folder

    usual = config_folder() / "policy.toml"
    if path is None and signer is None and not usual.exists():
        return Policy()
    return load_policy(path or usual, signer)


def known_roots_file() -> Path:
    """Return where this user's pinned roots are."""
    from flexserve.folders import config_folder

    return config_folder() / "known-roots"


def verification(found: AttestedServer) -> dict[str, Any]:
    """Return what was verified, as it stands in JSON; bytes are hex."""
    import hashlib

    from flexserve.attestation.described import described

    return {
        "token_sha256": hashlib.sha256(found.token).hexdigest(),
        "pinned_now": found.pinned_now,
        **described(found.verified),
    }


def _models(here: Settings) -> dict[str, str]:
    """Return the SHA-256 of each model's GGUF, by its name in this user's store."""
    from flexserve.cli.models import open_store

    if not any((here.models / "models").glob("*.flex")):
        return {}  # and no store is made
    return {manifest.name: manifest.digest for manifest in open_store(here).list()}


def _beside(platform: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return the digests of the layers up to a secure world of this host, and of what it consists of."""
    from flexserve.attestation.measurement import reference, world_digest
    from flexserve.emulator.boot_rom import reference_layers

    measurements, layers = reference(), dict[str, bytes]()
    if platform == "trustzone":
        images = _images()
        layers = reference_layers(images.firmware, images.el2)
    return {**layers, "world": world_digest(measurements)}, measurements


def _inside() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return the digests of the layers up to an application inside the machine, and of that itself."""
    from flexserve.emulator.handed_on import reference_layers, reference_measurements

    images = _images(inside=True)
    image = images.firmware.read_bytes()
    return reference_layers(image, images.el2.read_bytes()), reference_measurements(image)


def _images(*, inside: bool = False) -> Images:
    """Return what the emulated machine starts from, built if need be."""
    from flexserve.emulator.images import images_for
    from flexserve.units import GIB

    return images_for(ram_bytes=GIB, cpus=2, progress=terminal.note, inside=inside)


def _show(found: AttestedServer) -> None:
    import time

    it = found.verified
    terminal.say(f"root           {it.root.hex()}{' (first seen, and pinned)' if found.pinned_now else ''}")
    for layer in it.layers:
        terminal.say(f"layer          {layer.name}: {layer.code.hex()} ({layer.mode.name.lower()})")
    for name, digest in it.measurements.items():
        terminal.say(f"measurement    {name}: {digest.hex()}")
    for model in it.models:
        terminal.say(f"model          {model.digest}, signed by {model.signer or 'the device itself'}")
    for name, text in it.platform.items():
        terminal.say(f"{name:14} {text}")
    ends = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(it.sealing.end))
    terminal.say(f"sealing key    good until {ends}")
    terminal.say(f"FlexServe      {it.version} on {it.hardware}")
    if it.unchecked:
        terminal.warn(f"the policy does not name, so nobody checked: {', '.join(it.unchecked)}")
    if it.debug:
        terminal.warn("its root is of software or emulated: who runs that machine can imitate all of this.")


def _write(path: Path, text: str, option: str = "--policy") -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise CallerError(
            f"{path} cannot be written: {error.strerror}.", hint=f"Give another {option} FILE."
        ) from None
