"""Sealing: a GGUF becomes a .flex file (container.py), whole or not at all.

What takes long, a download, may be interrupted and go on. Until it is whole, its file is

    ROOT/models/NAME.part

a .flex file that ends early and is signed as unfinished; its `digest` is the identity of the source.
Its writer is never resumed (aead.py says why): the next try seals under a new key, and takes what the
part has from there and the rest from the source.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from flexserve.errors import CallerError, FlexServeError, StoredDataError
from flexserve.trusted.store.aead import KEY_SIZE, MODEL_ID_SIZE, SALT_SIZE, ChunkCipher, wipe
from flexserve.trusted.store.container import (
    KIND,
    STREAM,
    Progress,
    SealedModel,
    chunk_length,
    chunk_offset,
    file_size,
)
from flexserve.trusted.store.files import NewFile, disk_errors, open_locked, require_room, write_all
from flexserve.trusted.store.gguf import GgufHeader, parse_gguf
from flexserve.trusted.store.keys import Device, Sealer
from flexserve.trusted.store.manifest import (
    CHUNK,
    FORMAT_VERSION,
    MAX_SCALE,
    Adapts,
    Manifest,
    check_name,
    write_block,
)
from flexserve.trusted.store.source import FileSource, Source, reader

# Written data is pushed to the disk this often, so that progress tells the truth and the last
# fsync does not take minutes.
_FLUSH_EVERY = 256  # chunks


@dataclasses.dataclass(frozen=True, slots=True)
class Base:
    """The model that an adapter is added to, and how much the adapter changes it."""

    manifest: Manifest
    header: GgufHeader
    scale: float

    @property
    def adapts(self) -> Adapts:
        """What the manifest of the adapter says of it. Raises CallerError for a scale that none can have."""
        if not -MAX_SCALE <= self.scale <= MAX_SCALE:
            raise CallerError(
                "That is no scale of an adapter.",
                hint=f"Scales are between -{MAX_SCALE:g} and {MAX_SCALE:g}; 1 is what it was trained for.",
            )
        return Adapts(self.manifest.name, self.manifest.digest, self.scale)


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """Where an interrupted sealing is kept, and the device that can go on from it."""

    path: Path
    device: Device


def seal_file(source: Path, destination: Path, name: str, sealer: Sealer, progress: Progress) -> Manifest:
    """Seal the GGUF file `source`; see `seal`."""
    with FileSource(source) as file:
        return seal(file, destination, name, sealer, progress)


def seal(
    source: Source,
    destination: Path,
    name: str,
    sealer: Sealer,
    progress: Progress,
    *,
    part: Part | None = None,
    base: Base | None = None,
) -> Manifest:
    """Seal the GGUF of `source` into the new file `destination`, for whom `sealer` says.

    `progress(done, total)` is called after each chunk, in bytes. Whatever happens, `destination` is either
    complete or absent; what was sealed until then is kept in `part`, where one is named, and taken from
    there the next time. `base`: it is an adapter of that model. Raises CallerError when the source is not
    a usable GGUF, changes while it is read, or `destination` exists; NormalWorldError when the disk refuses
    (code "disk_full").
    """
    check_name(name)
    header = parse_gguf(reader(source), source.size, base=base.header if base is not None else None)
    draft, cipher = _draft(header, source, name, sealer)
    if base is not None:
        draft = msgspec.structs.replace(
            draft, adapts=base.adapts, context_length=base.manifest.context_length
        )
    action = f"Adding {name}"
    with contextlib.ExitStack() as stack:
        earlier = stack.enter_context(_earlier(part, source, name)) if part is not None else None
        require_room(destination.parent, file_size(draft), action)
        stack.enter_context(disk_errors(action))
        file = stack.enter_context(NewFile(destination))
        work = _Work(source, file, draft, cipher)
        stack.callback(work.wipe)
        for index in range(draft.chunks):
            if earlier is None or not work.copy(earlier, index):
                work.keep(part, sealer)
                work.fetch(index)
            progress(index * CHUNK + chunk_length(draft, index), draft.size)
        work.keep(part, sealer)  # in place of an earlier one that had all of it
        return _publish(work, file, sealer)
    raise AssertionError("an ExitStack swallows nothing here")


def _publish(work: _Work, file: NewFile, sealer: Sealer) -> Manifest:
    """Check and sign what was sealed, and give its file its name; return its manifest."""
    file.kept = False  # whatever is wrong with it now, going on from it would not cure
    manifest = work.manifest()
    write_all(file.fd, [memoryview(write_block(manifest, sealer))], 0)
    try:
        file.publish()
    except FileExistsError:
        raise name_taken(manifest.name) from None
    return manifest


def name_taken(name: str) -> CallerError:
    """Return the error that says that a model named `name` exists."""
    return CallerError(
        f"There is a model named {name} already.",
        hint=f"Remove it with `flexserve rm {name}`, or choose another name with --name.",
        code="model_exists",
    )


def _draft(header: GgufHeader, source: Source, name: str, sealer: Sealer) -> tuple[Manifest, ChunkCipher]:
    """Return the manifest of an unfinished sealing, and the cipher of a new one."""
    key, salt = secrets.token_bytes(KEY_SIZE), secrets.token_bytes(SALT_SIZE)
    model_id = secrets.token_bytes(MODEL_ID_SIZE)
    manifest = Manifest(
        name=name,
        model_id=model_id.hex(),
        device=sealer.identity,
        size=source.size,
        chunk=CHUNK,
        digest=source.identity,
        created=int(time.time()),
        architecture=header.architecture,
        parameters=header.parameter_count,
        context_length=header.context_length or 0,
        quantization=header.quantization,
        metadata_bytes=header.data_offset,
        salt=salt.hex(),
        wrapped_key=sealer.wrap(model_id, key).hex(),
    )
    return manifest, ChunkCipher(key, salt, KIND, FORMAT_VERSION, model_id)


@contextlib.contextmanager
def _earlier(part: Part, source: Source, name: str) -> Iterator[SealedModel | None]:
    """Yield what an interrupted sealing of the same source left; None: nothing that helps.

    Raises CallerError (code "pull_running") while somebody writes it.
    """
    with disk_errors(f"Adding {name}"), open_locked(part.path) as fd:
        try:
            model = SealedModel.unfinished(fd, part.device)
        except FlexServeError:  # empty, damaged, or another device's: it starts anew
            yield None
            return
        found = model.manifest
        same = (found.name, found.digest, found.size) == (name, source.identity, source.size)
        yield model if same else None


class _Work:
    """The sealing that is under way: chunk after chunk goes into `file`, and into the digest."""

    def __init__(self, source: Source, file: NewFile, draft: Manifest, cipher: ChunkCipher) -> None:
        self._source, self._file, self._draft, self._cipher = source, file, draft, cipher
        self._digest = hashlib.sha256()
        self._plain, self._sealed = bytearray(CHUNK), bytearray(CHUNK)
        self._copying = True

    def copy(self, earlier: SealedModel, index: int) -> bool:
        """Seal chunk `index` of an earlier try. False: it has no more, from now on."""
        text = memoryview(self._plain)[: chunk_length(self._draft, index)]
        if self._copying:
            try:
                earlier.read_into(index * CHUNK, text)
            except StoredDataError:  # it ends here, or was torn here when its writer ended
                self._copying = False
            else:
                self._seal(index, text)
        return self._copying

    def fetch(self, index: int) -> None:
        """Seal chunk `index` of the source."""
        text = memoryview(self._plain)[: chunk_length(self._draft, index)]
        self._source.read_into(index * CHUNK, text)
        self._seal(index, text)

    def keep(self, part: Part | None, sealer: Sealer) -> None:
        """Keep what there is as `part`, in place of what an earlier try left; None: nothing is kept."""
        if part is not None and not self._file.kept:
            write_all(self._file.fd, [memoryview(write_block(self._draft, sealer, unfinished=True))], 0)
            self._file.keep_as(part.path)

    def manifest(self) -> Manifest:
        """Return the manifest of all that was sealed. Raises CallerError when it should not have come."""
        digest = self._digest.hexdigest()
        self._source.check(digest)
        return msgspec.structs.replace(self._draft, digest=digest)

    def wipe(self) -> None:
        """Overwrite the plaintext that is left in memory."""
        wipe(self._plain)

    def _seal(self, index: int, text: memoryview) -> None:
        output = memoryview(self._sealed)[: len(text)]
        self._source.saw(text)
        self._digest.update(text)
        tag = self._cipher.encrypt(STREAM, index, self._draft.chunks, text, output)
        write_all(self._file.fd, [output, memoryview(tag)], chunk_offset(index))
        if index % _FLUSH_EVERY == _FLUSH_EVERY - 1:
            os.fdatasync(self._file.fd)
