"""Commands on the store: add, list, show, verify, rm, du, gc."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from flexserve.cli import about_models, terminal, vendor_models
from flexserve.cli.options import AsJson, DeviceKeyFile, ModelName, ModelsFolder
from flexserve.cli.statuses import Status
from flexserve.errors import CallerError, FlexServeError, UnknownModelError
from flexserve.units import format_size

if TYPE_CHECKING:
    from flexserve.settings import Settings
    from flexserve.trusted.store import DeviceKey, Manifest, Store


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command("add", epilog="Example: flexserve add llama-3.2-1b.gguf --name llama")(add)
    app.command("list", epilog="Example: flexserve list --json")(list_models)
    app.command("show", epilog="Example: flexserve show llama")(show)
    app.command("verify", epilog="Example: flexserve verify --all")(verify)
    app.command("rm", epilog="Example: flexserve rm llama --yes")(remove)
    app.command("du", epilog="Example: flexserve du --json")(usage)
    app.command("gc", epilog="Example: flexserve gc --unfinished")(collect)


def add(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.gguf|FILE.flex", show_default=False, help="The model's file.")
    ],
    name: Annotated[str | None, typer.Option("--name", help="Its name here [after the file].")] = None,
    adapter_of: Annotated[
        str | None,
        typer.Option("--adapter-of", metavar="MODEL", help="The file is a LoRA adapter of this model."),
    ] = None,
    scale: Annotated[float, typer.Option("--scale", help="How much the adapter changes its model.")] = 1.0,
    *,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license", metavar="FILE|URL", help="The file is a vendor's; its licence, or key server."
        ),
    ] = None,
    vendor: Annotated[
        str | None,
        typer.Option("--vendor", metavar="KEY|FILE", help="The vendor's public key, to trust from now on."),
    ] = None,
    server: Annotated[
        bool, typer.Option("--server", help="The licence is for the running server, of whatever platform.")
    ] = False,
    models: ModelsFolder = None,
    device_key: DeviceKeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Seal a GGUF file into the store, for this device only, and try it once.

    A model that a secure world dies of is not added. An adapter is a model of its own, with the name that it
    gets here; its weights are added to those of the model that it changes whenever it is used.

    A vendor's MODEL.flex is copied as it is, and keeps its name. Its licence is for this device alone, and
    the secure world opens it. Again with the same file, it renews the licence.
    """
    if licence is not None:
        if name is not None or adapter_of is not None:
            raise typer.BadParameter("a vendor's model keeps its name, and is no adapter.")
        chosen = vendor_models.Chosen(file, licence, vendor, server=server)
        return vendor_models.add(_settings(models, device_key), chosen, as_json=as_json)
    if vendor is not None or server:
        raise typer.BadParameter("--vendor and --server are for a vendor's model; give its --license.")
    if file.suffix == ".flex":
        raise CallerError(f"{file} is sealed already.", hint="A vendor's model is added with --license.")
    if scale != 1.0 and adapter_of is None:
        raise typer.BadParameter("only an adapter has a --scale; name its model with --adapter-of.")
    settings = _settings(models, device_key)
    store = open_store(settings)
    with terminal.progress(f"sealing {file.name}", silent=as_json) as show_progress:
        manifest = store.add(file, name, show_progress, adapter_of=adapter_of, scale=scale)
    finish_adding(settings, store, manifest, as_json=as_json)
    if not as_json:
        terminal.say(
            f"note: {file} is still there in clear; delete it if nobody else should read the weights"
        )
    return None


def finish_adding(
    settings: Settings, store: Store, manifest: Manifest, *, as_json: bool, pulled: bool = False
) -> None:
    """Try the model that was just sealed, and say what it is; remove it when a secure world dies of it.

    One that was `pulled` stays when the user ends the try: it took long to come.
    """
    from flexserve.cli.trial import try_model

    try:
        untried = try_model(settings, store, manifest.name)
    except BaseException as error:
        if isinstance(error, FlexServeError) or not pulled:
            store.remove(manifest.name)
        raise
    if as_json:
        return terminal.show_json({**about_models.as_json(manifest), "device_key": str(settings.device_key)})
    describe(store, manifest, as_json=False)
    terminal.say(
        f"key: {settings.device_key} opens it and nothing else does; keep a backup apart from the models"
    )
    if untried:
        terminal.say(f"note: it was not tried, and is at its first use: {untried}")
    if about_models.lacks_template(store, manifest):
        terminal.say(f"note: it brings {about_models.NO_TEMPLATE}")
    return None


def describe(store: Store, manifest: Manifest, *, as_json: bool) -> None:
    """Say that a model was added, and what it is."""
    if as_json:
        return terminal.show_json(
            {**about_models.as_json(manifest), **vendor_models.licensed(store, manifest)}
        )
    words = filter(None, (about_models.summary(manifest), vendor_models.whose(store, manifest)))
    return terminal.say(f"added {manifest.name}: {', '.join(words)}")


def list_models(
    models: ModelsFolder = None, device_key: DeviceKeyFile = None, as_json: AsJson = False
) -> None:
    """List the models of the store."""
    store = open_store(_settings(models, device_key))
    sound, damaged = store.list(), store.damaged()
    if as_json:
        rows = [
            {
                **about_models.as_json(manifest),
                **about_models.abilities(store, manifest),
                **vendor_models.licensed(store, manifest),
                "damaged": None,
            }
            for manifest in sound
        ]
        rows += [{"name": name, "damaged": terminal.error_object(error)} for name, error in damaged.items()]
        return terminal.show_json({"models": rows})
    if not sound and not damaged and not store.unfinished():
        return terminal.say("No models yet. Get one with `flexserve pull`, or `flexserve add FILE.gguf`.")
    columns = ["MODEL", "ARCHITECTURE", "PARAMETERS", "QUANTIZATION", "CONTEXT", "SIZE", "ADDED", "MAKES"]
    terminal.show_table(
        columns,
        [[*about_models.row(manifest), about_models.makes_and_vendor(store, manifest)] for manifest in sound],
        right=("PARAMETERS", "CONTEXT", "SIZE"),
    )
    for name, error in damaged.items():
        terminal.warn(f"{name} cannot be used: {error}")
    for name, size in store.unfinished().items():
        terminal.say(
            f"{name} is not whole yet ({format_size(size)}): pull it again, or `flexserve rm {name}`"
        )
    return None


def show(
    model: ModelName, models: ModelsFolder = None, device_key: DeviceKeyFile = None, as_json: AsJson = False
) -> None:
    """Show what a model is and where it lies."""
    settings = _settings(models, device_key)
    store = open_store(settings)
    manifest = store.manifest(model)
    images = [{"path": str(path), "bytes": path.stat().st_size} for path in store.derived.images(manifest)]
    details = {
        **about_models.as_json(manifest),
        **about_models.abilities(store, manifest),
        **vendor_models.licensed(store, manifest),
        **about_models.served(settings, manifest),
        "device": None if manifest.vendor is not None else manifest.device,
        "path": str(store.root / "models" / f"{model}.flex"),
        "images": images,
    }
    if as_json:
        return terminal.show_json(details)
    details["device"] = manifest.device if manifest.vendor is None else "each that has a licence"
    details["vendor"] = vendor_models.whose(store, manifest) or "none: this device sealed it"
    details["abilities"] = about_models.makes(store, manifest)
    details["size"] = f"{format_size(manifest.size)} ({manifest.size} bytes)"
    details["images"] = ", ".join(str(image["path"]) for image in images) or "none yet (made at first use)"
    details["served_shift"] = "on" if details["served_shift"] else "off"
    for key, value in details.items():
        if value is not None:
            terminal.say(f"{key.replace('_', ' '):16} {value}")
    return None


def verify(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", show_default=False, help="Which; or --all.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Check all models.")] = False,
    models: ModelsFolder = None,
    device_key: DeviceKeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Check every byte of sealed models, and try each once."""
    if (model is None) != every:
        raise typer.BadParameter("name a model, or give --all (and not both).")
    settings = _settings(models, device_key)
    store = open_store(settings)
    names = [model] if model is not None else sorted([m.name for m in store.list()] + [*store.damaged()])
    results = [_verify(settings, store, name, as_json=as_json) for name in names]
    if as_json:
        terminal.show_json({"models": results})
    elif not results:
        terminal.say("No models yet.")
    if not all(result["ok"] for result in results):
        raise typer.Exit(Status.FAILED)


def remove(
    model: ModelName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    models: ModelsFolder = None,
    device_key: DeviceKeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Remove a model and its images from the disk."""
    store = open_store(_settings(models, device_key))
    store.require(model)
    if not yes:
        if as_json or not sys.stdin.isatty():
            raise CallerError(f"{model} was not removed: nobody is here to ask.", hint="Add --yes.")
        if not typer.confirm(f"Remove {model}?"):
            return terminal.say("kept")
    adapters = [manifest.name for manifest in store.list() if _changes(manifest, model)]
    if models is None:  # what is set is of the models of the usual folder
        from flexserve.cli.model_options import forget

        forget(model)
    freed = store.remove(model)
    if as_json:
        return terminal.show_json({"removed": model, "freed": freed, "unusable": adapters})
    terminal.say(f"removed {model}: {format_size(freed)} of disk freed")
    if adapters:
        terminal.say(f"note: {', '.join(adapters)} cannot be used until {model} is added again")
    return None


def usage(models: ModelsFolder = None, device_key: DeviceKeyFile = None, as_json: AsJson = False) -> None:
    """Show what the store takes on the disk."""
    sizes = open_store(_settings(models, device_key)).usage()
    if as_json:
        rows = [{"name": name, **msgspec.to_builtins(size)} for name, size in sizes.items()]
        return terminal.show_json({"models": rows})
    table = [[name, *map(format_size, msgspec.structs.astuple(size))] for name, size in sizes.items()]
    columns = ["MODEL", "SEALED", "IMAGES", "KV", "UNFINISHED"]
    if table:
        terminal.show_table(columns, table, right=tuple(columns[1:]))
    total = sum(sum(msgspec.structs.astuple(size)) for size in sizes.values())
    return terminal.say(f"{format_size(total)} in all")


def collect(
    *,
    images: Annotated[
        bool,
        typer.Option(
            "--images",
            help="Images too, and the disk of a machine: the next start of each model makes its own again.",
        ),
    ] = False,
    kv: Annotated[
        bool, typer.Option("--kv", help="Sealed KV too: long conversations are computed again.")
    ] = False,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="What pulls left that broke off, too.")
    ] = False,
    models: ModelsFolder = None,
    device_key: DeviceKeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Free disk that no model needs: what is left of models that are gone, and what can be made again."""
    freed = open_store(_settings(models, device_key)).collect(images=images, kv=kv, unfinished=unfinished)
    if as_json:
        terminal.show_json({"freed": freed})
    else:
        terminal.say(f"{format_size(freed)} of disk freed")


def open_store(settings: Settings) -> Store:
    """Return the store of `settings`; a first one is made together with its device key.

    Raises CallerError when models exist and their key does not: a new key would not open them.
    """
    from flexserve.trusted.store import Store

    return Store(settings.models, open_device(settings))


def open_device(settings: Settings) -> DeviceKey:
    """Return the device key of `settings`, as `open_store`."""
    from flexserve.trusted.store import DeviceKey

    sealed = any((settings.models / "models").glob("*.flex"))
    return (DeviceKey.load if sealed else DeviceKey.load_or_create)(settings.device_key)


def _settings(models: Path | None, device_key: Path | None) -> Settings:
    from flexserve import settings

    return settings.load(models=models, device_key=device_key)


def _verify(settings: Settings, store: Store, name: str, *, as_json: bool) -> dict[str, Any]:
    from flexserve.cli.trial import try_model

    began = time.monotonic()
    result: dict[str, Any] = {"name": name, "ok": True, "error": None}
    try:
        with terminal.progress(f"verifying {name}", silent=as_json) as show_progress:
            if store.manifest(name).vendor is None:
                store.verify(name, show_progress)
            else:
                vendor_models.verify(store, name, show_progress)
        if (untried := try_model(settings, store, name)) and not as_json:
            terminal.say(f"note: {name} was not tried: {untried}")
    except UnknownModelError:
        raise
    except FlexServeError as error:
        result.update(ok=False, error=terminal.error_object(error))
        if not as_json:
            terminal.show_error(error)
    result["seconds"] = round(time.monotonic() - began, 3)
    if not as_json:
        terminal.say(f"{name}: {'sound' if result['ok'] else 'NOT SOUND'} ({result['seconds']:.1f} s)")
    return result


def _changes(manifest: Manifest, model: str) -> bool:
    """Return whether it is an adapter of `model`."""
    return manifest.adapts is not None and manifest.adapts.name == model
