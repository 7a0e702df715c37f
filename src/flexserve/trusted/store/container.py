"""The .flex file: a GGUF, sealed for one device, or by a vendor for those that it licenses.

    signed block (see manifest.py), then for each chunk of the GGUF: ciphertext, 16-byte tag

The length of the file follows from the manifest, so every byte of it is either signed or
authenticated. A tag follows its chunk directly: one `preadv` puts the ciphertext where the
plaintext is wanted and the tag beside it, and the chunk is decrypted where it lies.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from flexserve.attestation.licence import Licence
from flexserve.errors import CallerError
from flexserve.trusted.store.aead import TAG_SIZE, ChunkCipher, wipe
from flexserve.trusted.store.files import (
    disk_errors,
    read_errors,
    read_exact,
)
from flexserve.trusted.store.gguf import GgufHeader, parse_gguf
from flexserve.trusted.store.keys import Device
from flexserve.trusted.store.licences import require_known, unlock
from flexserve.trusted.store.manifest import (
    BLOCK_SIZE,
    CHUNK,
    FORMAT_VERSION,
    Manifest,
    bad,
    read_block,
)

Progress = Callable[[int, int], None]  # bytes done, bytes in total

KIND = b"gguf"
STREAM = 0


def chunk_offset(index: int) -> int:
    """Return where chunk `index` lies in a .flex file, in bytes."""
    return BLOCK_SIZE + index * (CHUNK + TAG_SIZE)


def chunk_length(manifest: Manifest, index: int) -> int:
    """Return the bytes of plaintext of chunk `index`."""
    return min(CHUNK, manifest.size - index * CHUNK)


def file_size(manifest: Manifest) -> int:
    """Return the size of a whole .flex file, in bytes."""
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
        *,
        local: bytes = b"",
    ) -> None:
        self.manifest = manifest
        self.model_key = local or key  # secret; the images and the KV of this model derive their keys from it
        self.licence: Licence | None = None  # of a vendor's model
        self._fd = fd
        salt = bytes.fromhex(manifest.salt)
        self._cipher = ChunkCipher(key, salt, KIND, FORMAT_VERSION, manifest.id_bytes)
        self._scratch = scratch.cast("B") if scratch is not None else None
        self._scratch_lock = threading.Lock()
        self._read = read

    @classmethod
    def unfinished(cls, fd: int, device: Device) -> SealedModel:
        """Return what an interrupted sealing left in the open file `fd`, which stays the caller's to close.

        Chunks that it lacks raise StoredDataError when they are read, as damaged ones do. Errors as `open`.
        """
        with read_errors("an unfinished model"):
            manifest = read_block(os.pread(fd, BLOCK_SIZE, 0), device, unfinished=True)
        key = device.unwrap(manifest.id_bytes, bytes.fromhex(manifest.wrapped_key))
        return cls(fd, manifest, key, None, lambda: None)

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
        blocks (code "disk_unreadable"); NormalWorldError when it cannot be read for another reason; of a
        vendor's model, as licences.unlock.
        """
        if scratch is not None and len(scratch) != CHUNK:
            raise ValueError(f"scratch has {len(scratch)} bytes, not {CHUNK}")
        fd = _open_sealed(path)
        try:
            manifest, block = _read_manifest(fd, path, device)
            if manifest.vendor is not None:
                opened, licence = unlock(path, block, manifest, manifest.vendor, device)
                model = cls(fd, manifest, opened.key, scratch, read, local=opened.local)
                model.licence = licence
                return model
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
            length = chunk_length(self.manifest, index)
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
            length = chunk_length(self.manifest, index)
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
            scratch = self._borrow()[: chunk_length(self.manifest, index)]
            try:
                self._read_chunk(index, scratch)
                target[:] = scratch[skip : skip + len(target)]
            finally:
                wipe(scratch)

    def _read_chunk(self, index: int, target: memoryview) -> None:
        tag = memoryview(bytearray(TAG_SIZE))
        read_exact(self._fd, [target, tag], chunk_offset(index), f"chunk {index} of {self.manifest.name}")
        self._cipher.decrypt(STREAM, index, self.manifest.chunks, target, tag)
        self._read()


def read_manifest(path: Path, device: Device) -> Manifest:
    """Return the verified manifest of `path`, reading one block; no key is unwrapped.

    Errors as SealedModel.open.
    """
    fd = _open_sealed(path)
    try:
        return _read_manifest(fd, path, device)[0]
    finally:
        os.close(fd)


def _open_sealed(path: Path) -> int:
    if path.is_symlink():
        raise bad("it is a symbolic link")
    with disk_errors(f"Opening {path.name}"):
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _read_manifest(fd: int, path: Path, device: Device) -> tuple[Manifest, bytes]:
    """Return the manifest, and the block that it stands in."""
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        raise bad("it is not a regular file")
    with read_errors("a sealed model"):
        block = os.pread(fd, BLOCK_SIZE, 0)
    manifest = read_block(block, device)
    if info.st_size != file_size(manifest):
        raise bad(f"it has {info.st_size} bytes and should have {file_size(manifest)}")
    require_known(path, manifest, device)
    return manifest, block
