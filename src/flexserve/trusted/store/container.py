"""The .flex file: a GGUF, sealed for one device.

    signed block (see manifest.py), then for each chunk of the GGUF: ciphertext, 16-byte tag

The length of the file follows from the manifest, so every byte of it is either signed or
authenticated. A tag follows its chunk directly: one `preadv` puts the ciphertext where the
plaintext is wanted and the tag beside it, and the chunk is decrypted where it lies.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import msgspec

from flexserve.errors import CallerError
from flexserve.trusted.store.aead import KEY_SIZE, MODEL_ID_SIZE, SALT_SIZE, TAG_SIZE, ChunkCipher, wipe
from flexserve.trusted.store.files import (
    NewFile,
    ShortFileError,
    disk_errors,
    read_errors,
    read_exact,
    require_room,
    write_all,
)
from flexserve.trusted.store.gguf import GgufHeader, parse_gguf
from flexserve.trusted.store.keys import Device
from flexserve.trusted.store.manifest import (
    BLOCK_SIZE,
    CHUNK,
    FORMAT_VERSION,
    MAX_SCALE,
    Adapts,
    Manifest,
    bad,
    check_name,
    read_block,
    write_block,
)

Progress = Callable[[int, int], None]  # bytes done, bytes in total

_KIND = b"gguf"
_STREAM = 0
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


def seal(
    source: Path,
    destination: Path,
    name: str,
    device: Device,
    progress: Progress,
    *,
    base: Base | None = None,
) -> Manifest:
    """Seal the GGUF `source` into the new file `destination`, readable by `device` only.

    `base`: it is an adapter of that model. `progress(done, total)` is called after each chunk. Whatever
    happens, `destination` is either complete or absent. Raises CallerError when the source is not a usable
    GGUF, changes while it is read, or `destination` exists; NormalWorldError when the disk refuses
    (code "disk_full").
    """
    check_name(name)
    fd, before = open_source(source)
    try:
        header = parse_gguf(
            lambda offset, length: _read_source(fd, offset, length),
            before.st_size,
            base=base.header if base is not None else None,
        )
        draft, cipher = _draft(header, before.st_size, name, device)
        if base is not None:
            draft = msgspec.structs.replace(
                draft, adapts=base.adapts, context_length=base.manifest.context_length
            )
        action = f"Adding {name}"
        require_room(destination.parent, _file_size(draft), action)
        with disk_errors(action), NewFile(destination) as file:
            digest = _seal_chunks(fd, file.fd, draft, cipher, progress)
            _check_unchanged(source, before, os.fstat(fd))
            manifest = msgspec.structs.replace(draft, digest=digest)
            write_all(file.fd, [memoryview(write_block(manifest, device))], 0)
            _publish(file, name)
        return manifest
    finally:
        os.close(fd)


def _publish(file: NewFile, name: str) -> None:
    try:
        file.publish()
    except FileExistsError:
        raise name_taken(name) from None


def name_taken(name: str) -> CallerError:
    """Return the error that says that a model named `name` exists."""
    return CallerError(
        f"There is a model named {name} already.",
        hint=f"Remove it with `flexserve rm {name}`, or choose another name with --name.",
        code="model_exists",
    )


def open_source(source: Path) -> tuple[int, os.stat_result]:
    """Return a descriptor of the file `source`, and its stat. Raises CallerError when it is none."""
    try:
        # O_NONBLOCK: opening a pipe must not hang.
        fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CallerError(
            f"{source} cannot be read: {os.strerror(error.errno or 0)}.", hint="Check the path."
        ) from None
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise CallerError(f"{source} is not a file.", hint="Name a GGUF file.")
    return fd, info


def _read_source(fd: int, offset: int, length: int) -> bytes:
    with read_errors("the GGUF file"):
        return os.pread(fd, length, offset)


def _check_unchanged(source: Path, before: os.stat_result, after: os.stat_result) -> None:
    # The header that was checked must be the header that was sealed. This catches accidents;
    # a forger who resets the times gets a model whose header is checked again at every open.
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise _changed(str(source))


def _changed(source: str) -> CallerError:
    return CallerError(f"{source} changed while it was added.", hint="Add it when it is complete.")


def _draft(header: GgufHeader, size: int, name: str, device: Device) -> tuple[Manifest, ChunkCipher]:
    """Return the manifest, still without its digest, and the cipher of a new sealing."""
    key, salt = secrets.token_bytes(KEY_SIZE), secrets.token_bytes(SALT_SIZE)
    model_id = secrets.token_bytes(MODEL_ID_SIZE)
    manifest = Manifest(
        name=name,
        model_id=model_id.hex(),
        device=device.identity,
        size=size,
        chunk=CHUNK,
        digest="",
        created=int(time.time()),
        architecture=header.architecture,
        parameters=header.parameter_count,
        context_length=header.context_length or 0,
        quantization=header.quantization,
        metadata_bytes=header.data_offset,
        salt=salt.hex(),
        wrapped_key=device.wrap(model_id, key).hex(),
    )
    return manifest, ChunkCipher(key, salt, _KIND, FORMAT_VERSION, model_id)


def _seal_chunks(
    source: int, target: int, manifest: Manifest, cipher: ChunkCipher, progress: Progress
) -> str:
    """Encrypt all of `source` into `target`; return the hex digest of the plaintext."""
    digest = hashlib.sha256()
    plain, sealed = bytearray(CHUNK), bytearray(CHUNK)
    try:
        for index in range(manifest.chunks):
            length = _chunk_length(manifest, index)
            text, output = memoryview(plain)[:length], memoryview(sealed)[:length]
            try:
                read_exact(source, [text], index * CHUNK, "the GGUF file")
            except ShortFileError:
                raise _changed("The GGUF file") from None
            digest.update(text)
            tag = cipher.encrypt(_STREAM, index, manifest.chunks, text, output)
            write_all(target, [output, memoryview(tag)], _chunk_offset(index))
            if index % _FLUSH_EVERY == _FLUSH_EVERY - 1:
                os.fdatasync(target)
            progress(index * CHUNK + length, manifest.size)
    finally:
        wipe(plain)
    return digest.hexdigest()


def _chunk_offset(index: int) -> int:
    return BLOCK_SIZE + index * (CHUNK + TAG_SIZE)


def _chunk_length(manifest: Manifest, index: int) -> int:
    return min(CHUNK, manifest.size - index * CHUNK)


def _file_size(manifest: Manifest) -> int:
    return BLOCK_SIZE + manifest.size + manifest.chunks * TAG_SIZE


class SealedModel:
    """An opened .flex file whose manifest was verified; chunks are verified as they are read.

    Thread-safe until `close`. A file removed from the store stays readable here.
    """

    def __init__(
        self,
        fd: int,
        manifest: Manifest,
        key: bytes,
        scratch: memoryview | None,
        read: Callable[[], None],
    ) -> None:
        self.manifest = manifest
        self.model_key = key  # secret; the images of this model derive their keys from it
        self._fd = fd
        salt = bytes.fromhex(manifest.salt)
        self._cipher = ChunkCipher(key, salt, _KIND, FORMAT_VERSION, manifest.id_bytes)
        self._scratch = scratch.cast("B") if scratch is not None else None
        self._scratch_lock = threading.Lock()
        self._read = read

    @classmethod
    def open(
        cls,
        path: Path,
        device: Device,
        *,
        scratch: memoryview | None = None,
        read: Callable[[], None] = lambda: None,
    ) -> SealedModel:
        """Open `path`, verify its manifest, unwrap its key.

        `scratch`: CHUNK bytes of writable memory in which chunks that are wanted in part are
        decrypted (and wiped again); hand over secure memory where plaintext matters. `read` is told
        of each chunk that was read. Raises
        StoredDataError when the file is damaged, forged, of another version or device, or on bad
        blocks (code "disk_unreadable"); NormalWorldError when it cannot be read for another reason.
        """
        if scratch is not None and len(scratch) != CHUNK:
            raise ValueError(f"scratch has {len(scratch)} bytes, not {CHUNK}")
        fd = _open_sealed(path)
        try:
            manifest = _read_manifest(fd, device)
            key = device.unwrap(manifest.id_bytes, bytes.fromhex(manifest.wrapped_key))
            return cls(fd, manifest, key, scratch, read)
        except BaseException:
            os.close(fd)
            raise

    def metadata_bytes(self) -> bytes:
        """Return the GGUF's bytes before its tensor data. Raises StoredDataError."""
        data = bytearray(self.manifest.metadata_bytes)
        self.read_into(0, memoryview(data))
        return bytes(data)

    def header(self, base: GgufHeader | None = None) -> GgufHeader:
        """Return the GGUF's header, parsed anew; `base`: the header of the model that it is an adapter of.

        Raises StoredDataError when it is not sound.
        """
        data = self.metadata_bytes()

        def read(offset: int, length: int) -> bytes:
            # The reader looks ahead; weights stay sealed, it gets zeros in their place.
            return data[offset : offset + length].ljust(length, b"\0")

        try:
            header = parse_gguf(read, self.manifest.size, base=base)
        except CallerError as error:
            raise bad(f"the header inside is not sound ({error.message})") from None
        if header.data_offset != self.manifest.metadata_bytes:
            raise bad("the header inside is not the one that was sealed")
        return header

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the GGUF's bytes from `offset` on, authenticated.

        Chunks that lie wholly inside are read and decrypted in `target` itself; of the others
        only the wanted part leaves the scratch. Raises StoredDataError when a byte is not the one
        that was sealed (what `target` holds then is undefined, but never unauthenticated plaintext) or
        cannot be read (code "disk_unreadable"), ValueError for a range outside the GGUF.
        """
        end = offset + len(target)
        if not 0 <= offset <= end <= self.manifest.size:
            raise ValueError(f"{offset}…{end} is outside a GGUF of {self.manifest.size} bytes")
        target = target.cast("B")  # memory of ctypes says "<B", which cannot be assigned to
        at = offset
        while at < end:
            index, skip = divmod(at, CHUNK)
            length = _chunk_length(self.manifest, index)
            count = min(length - skip, end - at)
            part = target[at - offset : at - offset + count]
            if count == length:
                self._read_chunk(index, part)
            else:
                self._read_part(index, skip, part)
            at += count

    def verify(self, progress: Progress) -> None:
        """Check every chunk and the digest of the whole. Raises StoredDataError.

        `progress(done, total)` is called after each chunk, in bytes.
        """
        digest = hashlib.sha256()
        for index in range(self.manifest.chunks):
            length = _chunk_length(self.manifest, index)
            with self._scratch_lock:
                scratch = self._borrow()[:length]
                try:
                    self._read_chunk(index, scratch)
                    digest.update(scratch)
                finally:
                    wipe(scratch)
            progress(index * CHUNK + length, self.manifest.size)
        if digest.hexdigest() != self.manifest.digest:
            raise bad("its digest is not the one in its manifest")

    def close(self) -> None:
        """Close the file. Always safe; no other call may be under way or follow."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> SealedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _borrow(self) -> memoryview:
        if self._scratch is None:
            self._scratch = memoryview(bytearray(CHUNK))
        return self._scratch

    def _read_part(self, index: int, skip: int, target: memoryview) -> None:
        with self._scratch_lock:
            scratch = self._borrow()[: _chunk_length(self.manifest, index)]
            try:
                self._read_chunk(index, scratch)
                target[:] = scratch[skip : skip + len(target)]
            finally:
                wipe(scratch)

    def _read_chunk(self, index: int, target: memoryview) -> None:
        tag = memoryview(bytearray(TAG_SIZE))
        read_exact(self._fd, [target, tag], _chunk_offset(index), f"chunk {index} of {self.manifest.name}")
        self._cipher.decrypt(_STREAM, index, self.manifest.chunks, target, tag)
        self._read()


def read_manifest(path: Path, device: Device) -> Manifest:
    """Return the verified manifest of `path`, reading one block; no key is unwrapped.

    Errors as SealedModel.open.
    """
    fd = _open_sealed(path)
    try:
        return _read_manifest(fd, device)
    finally:
        os.close(fd)


def _open_sealed(path: Path) -> int:
    if path.is_symlink():
        raise bad("it is a symbolic link")
    with disk_errors(f"Opening {path.name}"):
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _read_manifest(fd: int, device: Device) -> Manifest:
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        raise bad("it is not a regular file")
    with read_errors("a sealed model"):
        manifest = read_block(os.pread(fd, BLOCK_SIZE, 0), device)
    if info.st_size != _file_size(manifest):
        raise bad(f"it has {info.st_size} bytes and should have {_file_size(manifest)}")
    return manifest
