"""A vendor's models on this device: added with a licence, verified without a key."""

from __future__ import annotations

import dataclasses
import datetime
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexserve.cli import terminal
from flexserve.errors import CallerError, FlexServeError

if TYPE_CHECKING:
    from flexserve.settings import Settings
    from flexserve.trusted.store import Manifest, Store
    from flexserve.vendor.content import Block, Progress
    from flexserve.vendor.licensing import Evidence

_NONCE_SIZE = 32  # bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Chosen:
    """What is added: the file, its licence (a file or a key server), the vendor's key if it was named."""

    file: Path
    licence: str
    vendor: str | None
    _: dataclasses.KW_ONLY
    server: bool  # whether the running server is who gets the licence


def add(settings: Settings, chosen: Chosen, *, as_json: bool) -> None:
    """Bring a vendor's file and its licence into the store, and have a secure world open and try it."""
    import secrets

    from flexserve.cli.models import describe, open_device
    from flexserve.cli.trial import try_model
    from flexserve.trusted.store import Store
    from flexserve.vendor import device as on_device
    from flexserve.vendor.content import read_content

    device = open_device(settings)
    store = Store(settings.models, device)
    block = read_content(chosen.file)
    models = store.root / "models"
    _require_trust(chosen, block, on_device.trusted_vendor(models, block.manifest.name, device))

    key = b""  # of licences for this device

    def attest(nonce: bytes) -> Evidence:
        nonlocal key
        said = _evidence(settings, nonce, server=chosen.server)
        key = on_device.key_of(said, nonce)
        return said

    signed = on_device.licence_of(chosen.licence, block, attest)
    if not key:  # no key server has asked: it is a file
        attest(secrets.token_bytes(_NONCE_SIZE))
    on_device.checked_licence(signed, block, key, int(time.time()))
    with terminal.progress(f"adding {chosen.file.name}", silent=as_json) as progress:
        new = on_device.adopt(models, chosen.file, block, signed, device=device, progress=progress)
    untried = "the running server has it"
    if not chosen.server:
        try:
            untried = try_model(settings, store, block.manifest.name)
        except FlexServeError:
            if new:
                store.remove(block.manifest.name)
            raise
    describe(store, block.manifest, as_json=as_json)
    if not as_json:
        terminal.say(f"vendor: {block.vendor.key}, trusted for the name {block.manifest.name}")
        if untried:
            terminal.say(f"note: it was not tried: {untried}")


def verify(store: Store, name: str, progress: Progress) -> None:
    """Check every byte of a vendor's model by what the vendor signed, and that its licence is the vendor's.

    Raises CallerError, StoredDataError.
    """
    from flexserve.vendor.content import check_content, read_content

    path = store.root / "models" / f"{name}.flex"
    check_content(path, read_content(path), progress)
    store.licence(name)


def licensed(store: Store, manifest: Manifest) -> dict[str, Any]:
    """Return whose model it is, which version, and until when it may be used; None: this device's."""
    if manifest.vendor is None:
        return {"vendor": None}
    said: dict[str, Any] = {"key": manifest.vendor.key, "version": manifest.vendor.version}
    try:
        licence = store.licence(manifest.name)
    except FlexServeError as error:
        return {"vendor": {**said, "licence": terminal.error_object(error)}}
    if licence is not None:
        until = datetime.datetime.fromtimestamp(min(licence.expires, terminal.LAST_SECOND), datetime.UTC)
        said["licence"] = {"until": until.isoformat(), "uses": list(licence.uses)}
    return {"vendor": said}


def whose(store: Store, manifest: Manifest) -> str:
    """Return in words whose model it is; "": this device's."""
    vendor = licensed(store, manifest)["vendor"]
    if vendor is None:
        return ""
    whose = f"version {vendor['version']} of vendor {vendor['key'][:16]}…"
    if "until" in vendor["licence"]:
        return f"{whose}, licence until {vendor['licence']['until'][:16].replace('T', ' ')} UTC"
    return f"{whose}: {vendor['licence']['message']}"


def _require_trust(chosen: Chosen, block: Block, trusted: str | None) -> None:
    """Raise CallerError unless the user named the vendor's key, now or when the model came first."""
    from flexserve.vendor.keys import parse_public

    found = block.vendor.key
    expected = parse_public(chosen.vendor) if chosen.vendor is not None else trusted
    if expected is None:
        raise CallerError(
            f"Nobody said that the vendor of {block.manifest.name} is to be trusted: found key {found}.",
            hint=f"Compare the key with the one that the vendor published; then add --vendor {found}",
            code="unknown_vendor",
        )
    if expected != found:
        raise CallerError(
            f"{chosen.file} is signed by another vendor: expected {expected}, found {found}.",
            hint="Get the file from that vendor; or, if you trust the other key, name it with --vendor.",
            code="unknown_vendor",
        )


def _evidence(settings: Settings, nonce: bytes, *, server: bool) -> Evidence:
    from flexserve.cli import trial
    from flexserve.vendor.licensing import Evidence

    if server:
        from flexserve.cli.server import client

        with client(None, None, None) as running:
            answer = running.attestation(nonce)
        return Evidence(answer.chain, answer.token)
    said = trial.attest(settings, nonce)
    return Evidence(said.chain, said.token)
