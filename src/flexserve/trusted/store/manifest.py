"""The signed first block of a .flex file: what it holds, for which device, and the wrapped key.

    magic "FLEXSEAL", u32 format version, u32 manifest length, manifest (JSON), zeros, signature

Of a vendor's model the magic is "FLEXVEND", and the signature is the vendor's: any device may read it, and a
licence (licence.py) opens it.

The block is BLOCK_SIZE bytes; the Ed25519 signature is its last 64 and covers everything before
it, so no bit of the block can change. The manifest is readable without the key (`head -c 8192`):
it is the label on the box. What is secret is in the chunks.

A signature says "this device sealed this", not "this is the newest": whoever can write to the
store can put back a whole older .flex of the same name, as they can delete one. Refusing that
takes a counter they cannot turn back (an RPMB partition, a TPM), which plain Linux does not
offer. What cannot be done is to alter a version, to mix chunks of two sealings (their keys
differ), to rename a model, or to bring one from another device.
"""

from __future__ import annotations

import contextlib
import re
import struct
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec import Meta

from flexserve.errors import CallerError, InternalError, StoredDataError
from flexserve.trusted.store.aead import MODEL_ID_SIZE, SALT_SIZE
from flexserve.trusted.store.keys import SIGNATURE_SIZE, WRAPPED_SIZE, Device, Sealer

FORMAT_VERSION = 1
BLOCK_SIZE = 8192  # bytes
CHUNK = 1 << 20  # bytes of plaintext per chunk

_MAGIC, _UNFINISHED, _VENDORS = b"FLEXSEAL", b"FLEXPART", b"FLEXVEND"
_PRELUDE = struct.Struct("<8sII")
_SIGNED = BLOCK_SIZE - SIGNATURE_SIZE
_MAX_TEXT = _SIGNED - _PRELUDE.size

MAX_SCALE = 100.0  # of an adapter

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}\Z"
NAME_RULE = "Names have up to 64 of a–z, 0–9, '.', '_' and '-', and start with a letter or a digit."

Name = Annotated[str, Meta(pattern=NAME_PATTERN, max_length=64)]
Label = Annotated[str, Meta(max_length=64)]
Size = Annotated[int, Meta(ge=0, lt=1 << 53)]


def _hex(size: int) -> Meta:
    return Meta(pattern=rf"^[0-9a-f]{{{2 * size}}}\Z", max_length=2 * size)


class Adapts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model that a LoRA adapter changes, and how much."""

    name: Name
    digest: Annotated[str, _hex(32)]  # SHA-256 of its GGUF: what another model has under the name is refused
    scale: Annotated[float, Meta(ge=-MAX_SCALE, le=MAX_SCALE)]


class Vendor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who sealed a model that many devices may open, by a licence each. The manifest is signed by `key`."""

    key: Annotated[str, _hex(32)]  # public, of Ed25519
    version: Annotated[int, Meta(ge=1, lt=1 << 53)]  # of the model
    sealed: Annotated[str, _hex(32)]  # SHA-256 of the file behind the first block


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a sealed model is. Sizes in bytes; binary values as lower-case hex."""

    name: Name
    model_id: Annotated[str, _hex(MODEL_ID_SIZE)]  # drawn at sealing: two sealings of a file differ
    device: Annotated[str, _hex(32)]  # DeviceKey.identity of who can open it; a vendor's: zeros
    size: Annotated[int, Meta(ge=1, lt=1 << 50)]  # of the GGUF
    chunk: Annotated[int, Meta(ge=CHUNK, le=CHUNK)]  # of plaintext
    digest: Annotated[str, _hex(32)]  # SHA-256 of the GGUF; of an unfinished one: its source's identity
    created: Size  # seconds since 1970
    architecture: Label
    parameters: Size
    context_length: Size  # tokens; 0 if the GGUF does not say
    quantization: Label
    metadata_bytes: Size  # of the GGUF before its tensor data
    salt: Annotated[str, _hex(SALT_SIZE)]
    wrapped_key: Annotated[str, _hex(WRAPPED_SIZE)]  # a vendor's: zeros; the licence has the key
    adapts: Adapts | None = None  # it is an adapter; `context_length` is that of the model that it changes
    vendor: Vendor | None = None  # None: this device sealed it

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.size // self.chunk)

    @property
    def id_bytes(self) -> bytes:
        """`model_id` as bytes."""
        return bytes.fromhex(self.model_id)


def is_name(name: str) -> bool:
    """Tell whether a model can have that name."""
    return re.match(NAME_PATTERN, name) is not None


def check_name(name: str) -> str:
    """Return `name`, or raise CallerError when a model cannot have that name."""
    if not is_name(name):
        raise CallerError("That is not a name for a model.", hint=NAME_RULE, code="bad_name")
    return name


def name_from(title: str) -> str:
    """Return the name here of what is called `title` elsewhere. Raises CallerError if none can be made."""
    name = re.sub(r"[^a-z0-9._-]+", "-", title.lower()).strip("-._")[:64]
    if not is_name(name):
        raise CallerError(
            f"No name can be made from {title[:64]!r}.", hint=f"Give one with --name. {NAME_RULE}"
        )
    return name


def write_block(manifest: Manifest, sealer: Sealer, *, unfinished: bool = False) -> bytes:
    """Return the signed block of `manifest`: BLOCK_SIZE bytes. `unfinished`: of a file that ends early."""
    text = msgspec.json.encode(manifest)
    try:
        msgspec.json.decode(text, type=Manifest)  # what the reader would refuse is never signed
    except msgspec.ValidationError as error:
        raise InternalError("A manifest is out of its own bounds.", hint="Report this.") from error
    magic = _UNFINISHED if unfinished else _MAGIC if manifest.vendor is None else _VENDORS
    signed = (_PRELUDE.pack(magic, FORMAT_VERSION, len(text)) + text).ljust(_SIGNED, b"\0")
    return signed + sealer.sign(signed)


def read_block(block: bytes, device: Device, *, unfinished: bool = False) -> Manifest:
    """Return the manifest in `block`, which `device` signed, or a vendor. Raises StoredDataError otherwise.

    A file that was signed as unfinished never passes for a whole one, nor the other way round. Whether the
    vendor is one that this device trusts is not said here.
    """
    if len(block) != BLOCK_SIZE:
        raise bad("it is shorter than its first block")
    magic, version, length = _PRELUDE.unpack_from(block)
    if magic == _VENDORS and version == FORMAT_VERSION and not unfinished:
        return read_vendor_block(block)
    if magic != (_UNFINISHED if unfinished else _MAGIC):
        raise bad("it does not start as one")
    if version != FORMAT_VERSION:
        raise bad(f"it says format version {version}, and this program reads version {FORMAT_VERSION}")
    text = block[_PRELUDE.size : _PRELUDE.size + min(length, _MAX_TEXT)]
    try:
        device.verify(block[:_SIGNED], block[_SIGNED:])
    except StoredDataError:
        _blame_other_device(text, device)
        raise bad("its manifest is damaged or forged") from None
    # From here on the bytes are what this device wrote; a program bug may still have written them.
    try:
        return msgspec.json.decode(text, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise bad("its manifest is not one this program writes") from None


def read_label(block: bytes) -> Manifest:
    """Return what the manifest in `block` says, which nobody verified: for who has no key, and opens nothing.

    Raises StoredDataError for what is none.
    """
    if len(block) == BLOCK_SIZE:
        magic, version, length = _PRELUDE.unpack_from(block)
        if magic in (_MAGIC, _VENDORS) and version == FORMAT_VERSION:
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                text = block[_PRELUDE.size : _PRELUDE.size + min(length, _MAX_TEXT)]
                return msgspec.json.decode(text, type=Manifest)
    raise bad("it does not start as one")


def read_vendor_block(block: bytes) -> Manifest:
    """Return the manifest in `block`, which the vendor signed that it names. Raises StoredDataError."""
    try:
        _, _, length = _PRELUDE.unpack_from(block)
        text = block[_PRELUDE.size : _PRELUDE.size + min(length, _MAX_TEXT)]
        manifest = msgspec.json.decode(text, type=Manifest)
        if manifest.vendor is not None and manifest.adapts is None and block.startswith(_VENDORS):
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(manifest.vendor.key))
            key.verify(block[_SIGNED:], block[:_SIGNED])
            return manifest
    except (
        msgspec.MsgspecError,
        UnicodeDecodeError,
        RecursionError,
        ValueError,
        InvalidSignature,
        struct.error,
    ):
        pass
    raise StoredDataError(
        "The vendor's model is damaged or forged: its manifest is not signed by the key that it names.",
        hint="Get the file from the vendor again.",
        code="vendor_forged",
    )


def _blame_other_device(text: bytes, device: Device) -> None:
    """Raise the clearer error if the manifest claims to be for another device; trusts nothing."""
    try:
        claimed = msgspec.json.decode(text, type=Manifest).device
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    if claimed != device.identity:
        raise StoredDataError(
            "The model was sealed with another device key.",
            hint="Restore that key, or add the model again with this one.",
            code="other_device",
        ) from None


def bad(what: str) -> StoredDataError:
    """Return the error that says what is wrong with a .flex file."""
    return StoredDataError(
        f"The sealed model is not usable: {what}.", hint="Remove it and add the model again."
    )
