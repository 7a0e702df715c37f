"""What the store knows of a model: in words, as a row of a table, and as JSON."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from flexserve.cli import terminal, vendor_models
from flexserve.units import format_size

if TYPE_CHECKING:
    from flexserve.settings import Settings
    from flexserve.trusted.store import Manifest, Store

NO_TEMPLATE = "no chat template (conversations are written in ChatML, which it may not know)"


def as_json(manifest: Manifest) -> dict[str, Any]:
    """Return what its manifest says."""
    return {
        "name": manifest.name,
        "architecture": manifest.architecture,
        "parameters": manifest.parameters,
        "quantization": manifest.quantization,
        "context_length": manifest.context_length,
        "size": manifest.size,
        "created": _created(manifest).isoformat(),
        "sha256": manifest.digest,
        "model_id": manifest.model_id,
        "adapter_of": None if manifest.adapts is None else msgspec.to_builtins(manifest.adapts),
    }


def abilities(store: Store, manifest: Manifest) -> dict[str, Any]:
    """Return what the model was found to be able to do; None: nobody tried."""
    record = store.derived.record(manifest)
    return {"abilities": None if record is None else msgspec.to_builtins(record.abilities)}


def served(settings: Settings, manifest: Manifest) -> dict[str, Any]:
    """Return the context, the type of KV and the draft that a server with these settings gives a model."""
    from flexserve.normal.model_options import ModelChoices
    from flexserve.trusted.limits import Limits

    options = ModelChoices(settings.model_options).of(manifest.name)
    limits = Limits.usual(settings.secure_options()).changed(options)
    return {
        "served_context": limits.context_of(manifest.context_length),
        "served_kv": limits.kv,
        "served_shift": limits.shift,
        "served_draft": options.draft,
    }


def makes(store: Store, manifest: Manifest) -> str:
    """Return what the model was found to make."""
    record = store.derived.record(manifest)
    if record is None:
        return f"not tried (`flexserve verify {manifest.name}`)"
    able = record.abilities
    calls = "" if able.tools == "none" else f"calls of tools ({able.tools})"
    lacks = NO_TEMPLATE * lacks_template(store, manifest)
    makes = ("text" * able.text, calls * able.text, "vectors" * able.vectors, "ranks" * able.ranks, lacks)
    return ", ".join(filter(None, (*makes, _adapts(manifest))))


def makes_and_vendor(store: Store, manifest: Manifest) -> str:
    """Return what a model makes, and whose it is if it is a vendor's."""
    return ", ".join(filter(None, (makes(store, manifest), vendor_models.whose(store, manifest))))


def lacks_template(store: Store, manifest: Manifest) -> bool:
    """Return whether a model that makes text was found to bring no chat template."""
    record = store.derived.record(manifest)
    return record is not None and record.abilities.text and not record.abilities.template


def _created(manifest: Manifest) -> datetime.datetime:
    seconds = min(manifest.created, terminal.LAST_SECOND)
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC)


def row(manifest: Manifest) -> list[str]:
    """Return it as a row: name, architecture, parameters, quantization, context, size, date."""
    return [
        manifest.name,
        manifest.architecture,
        _count(manifest.parameters),
        manifest.quantization,
        str(manifest.context_length or "?"),
        format_size(manifest.size),
        f"{_created(manifest):%Y-%m-%d %H:%M}",
    ]


def summary(manifest: Manifest) -> str:
    """Return what kind of model it is, and how large."""
    kind = f"{manifest.architecture}, {_count(manifest.parameters)} parameters, {manifest.quantization}"
    return ", ".join(filter(None, (kind, format_size(manifest.size), _adapts(manifest))))


def _adapts(manifest: Manifest) -> str:
    """Return which model an adapter changes; "": it is none."""
    changed = manifest.adapts
    if changed is None:
        return ""
    scale = "" if changed.scale == 1 else f" at scale {changed.scale:g}"
    return f"adapter of {changed.name}{scale}"


def _count(number: int) -> str:
    for factor, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return str(number)
