"""`flexserve connect`: the APIs on this machine, over a sealed channel to a server elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flexserve.cli.attestation import PolicyFile, PolicySigner, known_roots_file, policy_of
from flexserve.errors import CallerError

if TYPE_CHECKING:
    from flexserve.normal.remote_world import Rendering


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("connect", epilog="Example: flexserve connect http://server:7077 --policy good.toml")(connect)


def connect(
    url: Annotated[str, typer.Argument(metavar="URL", show_default=False, help="The server's address.")],
    policy: PolicyFile = None,
    policy_signer: PolicySigner = None,
    *,
    port: Annotated[int | None, typer.Option(metavar="N", min=0, max=65535, help="TCP port [7078].")] = None,
    receipts: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to keep the receipts of answers in.")
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Serve only who has one of these keys, one per line [everybody]."),
    ] = None,
    round_answers: Annotated[
        int,
        typer.Option(
            metavar="TOKENS",
            min=1,
            max=4096,
            help="Have each answer computed to a multiple of so many tokens: its length tells no more.",
        ),
    ] = 1,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(help="What to log on standard error.")
    ] = "info",
) -> None:
    """Serve a remote server's models on this machine; only its secure world can read the requests.

    The secure world is verified before anything is sent to it. Point clients at http://127.0.0.1:7078 as at
    `flexserve serve`. /verification shows what was verified, /receipts/ID the receipt of the answer whose
    X-Request-Id that is. FLEXSERVE_API_KEY is the key that the server wants, if it wants one.
    """
    from flexserve import settings
    from flexserve.normal.imports import importing
    from flexserve.normal.key_file import read_keys

    with importing():
        from flexserve.normal import connect as connecting

    if receipts is not None and not receipts.is_dir():
        raise CallerError(f"{receipts} is no folder.", hint="Make it first.")
    options = connecting.ConnectOptions(
        url,
        known_roots_file(),
        policy_of(policy, policy_signer),
        key=settings.load().address().key,
        port=connecting.PORT if port is None else port,
        api_keys=read_keys(api_key_file) if api_key_file is not None else (),
        receipts=receipts,
        rounding=round_answers,
        rendering=_rendering,
        log_level=log_level,
    )
    raise typer.Exit(connecting.connect(options))


def _rendering() -> Rendering:
    """Return what renders prompts for a secure world that renders none, with a sandbox of its own."""
    from flexserve.tee_client.rendering import PromptRenderer
    from flexserve.trusted.sidecar import start_helper
    from flexserve.trusted.text.rendering.renderer import Renderer

    renderer = Renderer(start_helper())
    renderer.wait_until_ready()
    return PromptRenderer(renderer)
