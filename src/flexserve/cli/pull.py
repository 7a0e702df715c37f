"""Commands that bring models from elsewhere into the store: pull, import."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from flexserve.cli import terminal
from flexserve.cli.models import finish_adding, open_store
from flexserve.cli.options import AsJson, DeviceKeyFile, ModelsFolder
from flexserve.errors import CallerError
from flexserve.units import format_size

if TYPE_CHECKING:
    from flexserve.registries.hub import Published
    from flexserve.registries.local import LocalModel

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command("pull", epilog="Example: flexserve pull hf:ggml-org/SmolVLM-256M-Instruct-GGUF:Q8_0")(pull)
    app.command("import", epilog="Example: flexserve import ollama llama3.2:1b")(import_models)


def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="hf:ORG/REPO[:QUANT] | ollama:NAME[:TAG] | URL",
            show_default=False,
            help="What to pull; hf:ORG/REPO/FILE.gguf names a file, @REVISION at the end a revision.",
        ),
    ],
    *,
    name: Annotated[str | None, typer.Option("--name", help="Its name here [after the file].")] = None,
    sha256: Annotated[str, typer.Option("--sha256", help="What the file's SHA-256 has to be.")] = "",
    models: ModelsFolder = None,
    device_key: DeviceKeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Download a model straight into the store: it is sealed as it comes, and never on disk in clear.

    What breaks off goes on where it stopped when the same command is run again. Set HF_TOKEN for models of
    Hugging Face that want one.
    """
    from flexserve import settings
    from flexserve.registries.download import Download, make_client
    from flexserve.registries.hub import find
    from flexserve.registries.reference import parse_reference
    from flexserve.trusted.store.manifest import name_from
    from flexserve.trusted.store.split import JoinedSource

    reference = parse_reference(model)
    configured = settings.load(models=models, device_key=device_key)
    store = open_store(configured)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(make_client())
        published = _with_digest(find(reference, client), sha256)
        title = name if name is not None else name_from(published.title)
        tell = (lambda _text: None) if as_json else terminal.note
        parts = [stack.enter_context(Download(file, client, tell=tell)) for file in published.files]
        source = JoinedSource(parts) if len(parts) > 1 else parts[0]
        with terminal.progress(f"pulling {title}", silent=as_json) as show_progress:
            manifest = store.receive(source, title, show_progress)
    finish_adding(configured, store, manifest, as_json=as_json, pulled=True)
    if not as_json and not all(file.sha256 for file in published.files):
        terminal.say("note: nobody published its digest, so it was not checked; --sha256 checks it")


def import_models(
    program: Annotated[
        str, typer.Argument(metavar="ollama|lmstudio", show_default=False, help="Whose models.")
    ],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", show_default=False, help="Which [list them].")
    ] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Import all of them.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where they lie [where it has them].")
    ] = None,
    models: ModelsFolder = None,
    device_key: DeviceKeyFile = None,
    as_json: AsJson = False,
) -> None:
    """List the models that ollama or LM Studio has on this machine, or seal some of them into the store."""
    from flexserve import settings
    from flexserve.registries.local import PROGRAMS
    from flexserve.trusted.store.manifest import name_from

    if program not in PROGRAMS:
        raise typer.BadParameter(f"{program!r} is neither {' nor '.join(PROGRAMS)}.")
    where, find = PROGRAMS[program]
    folder = folder or where()
    found = find(folder)
    if not names and not every:
        return _list(found, folder, as_json=as_json)
    configured = settings.load(models=models, device_key=device_key)
    store = open_store(configured)
    for model in _chosen(found, names or [], folder):
        with terminal.progress(f"sealing {model.name}", silent=as_json) as show_progress:
            name = name_from(model.name.removesuffix(":latest"))
            manifest = store.add(model.path, name, show_progress, sha256=model.sha256)
        finish_adding(configured, store, manifest, as_json=as_json)
    return None


def _with_digest(published: Published, sha256: str) -> Published:
    """Return `published` with the digest that the caller says. Raises CallerError where it cannot be."""
    from dataclasses import replace

    from flexserve.registries.hub import Published

    digest = sha256.lower().removeprefix("sha256:")
    if digest and not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise CallerError("--sha256 takes 64 hexadecimal digits.")
    if digest and len(published.files) > 1:
        raise CallerError("--sha256 is of one file, and this model has several.", hint="Leave it out.")
    for file in published.files:
        address = urlsplit(file.url)
        if address.scheme == "http" and address.hostname not in _LOOPBACK and not (digest or file.sha256):
            raise CallerError(
                f"Anybody on the way to {address.hostname} could change what it sends over http.",
                hint="Use https, or say what should come with --sha256.",
                code="not_confidential",
            )
    if not digest:
        return published
    return Published((replace(published.files[0], sha256=digest),), published.title)


def _list(found: list[LocalModel], folder: Path, *, as_json: bool) -> None:
    if as_json:
        described = [{"name": model.name, "path": str(model.path), "size": model.size} for model in found]
        return terminal.show_json({"models": described})
    if not found:
        return terminal.say(f"There are no models in {folder}.")
    rows = [[model.name, format_size(model.size), str(model.path)] for model in found]
    return terminal.show_table(["MODEL", "SIZE", "FILE"], rows, right=("SIZE",))


def _chosen(found: list[LocalModel], names: list[str], folder: Path) -> list[LocalModel]:
    """Return the models of these names; of no names, all."""
    known = {alias: model for model in found for alias in (model.name, model.name.removesuffix(":latest"))}
    for name in names:
        if name not in known:
            hint = f"It has: {', '.join(model.name for model in found)}." if found else "It has none."
            raise CallerError(f"There is no {name!r} in {folder}.", hint=hint, code="model_not_found")
    return [known[name] for name in names] or found
