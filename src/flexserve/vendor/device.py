"""A device's side: a vendor's file and its licence come into the store, as they are."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import msgspec

from flexserve.attestation.licence import MAX_SIZE, Licence
from flexserve.attestation.policy import Policy
from flexserve.attestation.verification import verify
from flexserve.errors import CallerError, FlexServeError, NormalWorldError, StoredDataError
from flexserve.trusted.store.files import NewFile, disk_errors, require_room, write_all
from flexserve.trusted.store.keys import Device
from flexserve.trusted.store.licences import (
    Entry,
    alone,
    ledger_path,
    licence_path,
    put,
    read,
    read_entry,
    read_terms,
    require_device,
    require_known,
    require_same,
    require_time,
    rolled_back,
    terms,
    write_entry,
)
from flexserve.trusted.store.manifest import BLOCK_SIZE
from flexserve.vendor.content import Block, Progress, check_content, read_content
from flexserve.vendor.licensing import Evidence

Attest = Callable[[bytes], Evidence]  # with a nonce
_PATIENCE = httpx.Timeout(30.0)  # seconds without a byte
_STEP = 1 << 20  # bytes


class _Challenge(msgspec.Struct):
    nonce: str


class _Refusal(msgspec.Struct):
    message: str
    code: str = "licence_refused"
    hint: str = ""


class _Refused(msgspec.Struct):
    error: _Refusal


def licence_of(where: str, block: Block, attest: Attest) -> bytes:
    """Return the licence at `where`, a file or the address of a key server, which gets evidence for it.

    Raises CallerError with the key server's words, NormalWorldError when it does not answer.
    """
    if "://" not in where:
        return _read(Path(where))
    if urlsplit(where).scheme not in ("http", "https"):
        raise CallerError(f"{where[:64]!r} is no address of a key server.", hint="It begins with https://.")
    with httpx.Client(base_url=where.rstrip("/"), timeout=_PATIENCE) as client:
        try:
            nonce = bytes.fromhex(
                msgspec.json.decode(_post(client, "/v1/challenge", b"{}"), type=_Challenge).nonce
            )
            said = attest(nonce)
        except (msgspec.MsgspecError, ValueError):
            raise _unclear(where) from None
        asked = {"nonce": nonce.hex(), **msgspec.structs.asdict(said), "content": block.digest.hex()}
        return _post(client, "/v1/licence", msgspec.json.encode(asked))


def checked_licence(signed: bytes, block: Block, key: bytes, now: int) -> Licence:
    """Return the licence, if it is good here: of this file, for this key (its SHA-256), and not over.

    Raises StoredDataError, CallerError. The secure world checks it all again, and what is older than what it
    has seen.
    """
    licence = read_terms(signed, block.vendor)
    require_same(licence, block.manifest, block.digest)
    require_device(licence, key)
    require_time(licence, max(now, licence.issued // 1000))
    return licence


def adopt(
    models: Path, file: Path, block: Block, signed: bytes, *, device: Device, progress: Progress
) -> bool:
    """Put a vendor's file and its licence into the folder `models`; return whether the model is new there.

    An older version of it is replaced, and the same one gets the licence only. Its vendor is trusted for this
    name from then on. Raises CallerError for a damaged file and where another model has the name,
    StoredDataError for what is older than what is here, NormalWorldError when the disk refuses; what was
    there stays then.
    """
    target = models / f"{block.manifest.name}.flex"
    before = _before(target, block)
    same = before is not None and before.data == block.data
    if same:
        _require_newer(target, block, signed)
    else:
        check_content(file, block, progress)
    _trust(target, block, device)
    require_known(target, block.manifest, device)
    licence = licence_path(target, block.manifest)
    if before is not None:
        put(licence, signed)  # whichever file is there at any moment, its licence is
    if not same:
        _copy(file, target, block, replace=before is not None)
    if before is None:
        put(licence, signed)
    elif not same:
        licence_path(target, before.manifest).unlink(missing_ok=True)
    return before is None


def trusted_vendor(models: Path, name: str, device: Device) -> str | None:
    """Return the public key of the vendor that is trusted for the model `name`; None: none."""
    with contextlib.suppress(StoredDataError):
        return read_entry(read(ledger_path(models / f"{name}.flex")), name, device).vendor
    return None


def _trust(target: Path, block: Block, device: Device) -> None:
    """Trust the vendor for the model's name; what was seen of it so far stays known."""
    path, name = ledger_path(target), block.manifest.name
    with alone(path):
        if trusted_vendor(target.parent, name, device) != block.vendor.key:
            put(path, write_entry(Entry(name, block.vendor.key), device))


def _require_newer(target: Path, block: Block, signed: bytes) -> None:
    """Raise StoredDataError for a licence that is older than the one that is here."""
    try:
        known = terms(target, block.manifest)
    except (CallerError, StoredDataError):
        return  # there is none that counts
    issued = read_terms(signed, block.vendor).issued
    if known is not None and issued < known.issued:
        raise rolled_back(f"the licence issued at {issued}", f"the one issued at {known.issued}")


def _before(target: Path, block: Block) -> Block | None:
    """Return what has the name now; None: nothing. Raises CallerError for another model or a newer one."""
    if not os.path.lexists(target):
        return None
    try:
        before = read_content(target)
    except FlexServeError:
        before = None
    if before is None or before.vendor.key != block.vendor.key:
        raise CallerError(
            f"There is another model named {block.manifest.name} already.",
            hint=f"Remove it first: `flexserve rm {block.manifest.name}`.",
            code="model_exists",
        )
    if before.vendor.version > block.vendor.version:
        raise StoredDataError(
            f"It is older than what is here: version: expected {before.vendor.version} or later, "
            f"found {block.vendor.version}.",
            hint="Get the newest file from the vendor.",
            code="licence_rolled_back",
        )
    return before


def _copy(file: Path, target: Path, block: Block, *, replace: bool) -> None:
    """Copy the file, whose first block is the one that was checked; a byte that changed is noticed later."""
    action = f"Adding {block.manifest.name}"
    require_room(target.parent, file.stat().st_size, action)
    with disk_errors(action), NewFile(target) as new, file.open("rb") as old:
        write_all(new.fd, [memoryview(block.data)], 0)
        old.seek(BLOCK_SIZE)
        at = BLOCK_SIZE
        while data := old.read(_STEP):
            write_all(new.fd, [memoryview(data)], at)
            at += len(data)
        if replace:
            new.publish_over()
        else:
            new.publish()


def key_of(said: Evidence, nonce: bytes) -> bytes:
    """Return the SHA-256 of the key of licences in what this device's own secure world says.

    Raises CallerError for one that opens no vendors' models, PeerError for one that proves nothing.
    """
    key = verify(said.chain, said.token, nonce, Policy(emulated="allow")).licences
    if not key:
        raise CallerError(
            "The server's secure world, inside of the emulated machine, opens no vendor's model.",
            hint="Start the server with `--secure-world host`, and add the model then.",
            code="secure_world_inside",
        )
    return hashlib.sha256(key).digest()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_SIZE + 1)
    except OSError as error:
        raise CallerError(
            f"The licence {path} cannot be read: {error.strerror}.", hint="Name its file, or a key server."
        ) from None


def _post(client: httpx.Client, path: str, body: bytes) -> bytes:
    """Return what the key server answers. Raises CallerError with its words, NormalWorldError."""
    try:
        with client.stream(
            "POST", path, content=body, headers={"Content-Type": "application/json"}
        ) as answer:
            data = b""
            for piece in answer.iter_bytes():
                data += piece
                if len(data) > 4 * MAX_SIZE:
                    raise _unclear(str(client.base_url))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NormalWorldError(
            f"The key server {client.base_url} does not answer: {type(error).__name__}.",
            hint="Check the address, and whether it runs.",
            code="key_server_unreachable",
        ) from None
    if answer.status_code == httpx.codes.OK:
        return data
    try:
        said = msgspec.json.decode(data, type=_Refused).error
    except msgspec.MsgspecError:
        raise _unclear(str(client.base_url)) from None
    raise CallerError(
        f"The key server refused: {said.message[:500]}", hint=said.hint[:500], code=said.code[:64]
    )


def _unclear(where: str) -> NormalWorldError:
    return NormalWorldError(
        f"What {where} answers is not a key server's.", hint="Check the address.", code="key_server_unclear"
    )
