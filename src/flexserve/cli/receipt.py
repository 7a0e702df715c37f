"""`flexserve receipt verify`: whether a receipt is a secure world's, and what it says."""

from __future__ import annotations

import dataclasses
import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from flexserve.cli import terminal
from flexserve.cli.attestation import PolicyFile, PolicySigner, policy_of
from flexserve.cli.options import AsJson
from flexserve.errors import CallerError, PeerError


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    epilog = "Example: flexserve receipt verify req-17.receipt --policy good.toml --answer answer.txt"
    app.command("receipt verify", epilog=epilog)(verify)


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="The receipt.")],
    policy: PolicyFile = None,
    policy_signer: PolicySigner = None,
    answer: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The answer's text, to compare.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify a receipt of `flexserve connect`; say which weights answered what.

    It is verified like the attestation that it belongs to, by the same policy. The answer's text is what the
    model wrote, with its thoughts and calls of tools as it writes them.
    """
    from flexserve.attestation.kept_receipt import load_receipt, verify_receipt

    receipt, verified = verify_receipt(load_receipt(file), policy_of(policy, policy_signer))
    if answer is not None:
        _compare(answer, receipt.answer)
    said = {
        name: value.hex() if isinstance(value, bytes) else value
        for name, value in dataclasses.asdict(receipt).items()
    }
    if as_json:
        terminal.show_json({"verified": True, "world": verified.world.hex(), **said})
        return
    when = datetime.fromtimestamp(receipt.time, UTC).isoformat()
    shown = {**said, "time": when, "world": verified.world.hex()}
    if answer is not None:
        shown["answer"] += " (is that of the file)"
    for name, value in shown.items():
        if value != "":  # "base" is, where no adapter changed the model
            terminal.say(f"{name.replace('_', ' '):<14} {value}")
    terminal.say("The receipt is good.")


def _compare(path: Path, digest: bytes) -> None:
    try:
        found = hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise CallerError(f"{path} cannot be read: {error.strerror}.", hint="Name a file.") from None
    if found != digest:
        raise PeerError(
            "The receipt is of another answer.",
            hint="Give the text exactly as it came, without a line break added at its end.",
            code="another_answer",
        )
