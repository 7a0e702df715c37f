"""The weights of one sealed file that llama.cpp has open: their places, and the image they come from."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence

from flexserve.errors import InternalError, StoredDataError, UnknownModelError
from flexserve.trusted.engine.image_maker import ImageMaker
from flexserve.trusted.engine.placement import Opening
from flexserve.trusted.engine.runtime import Engine
from flexserve.trusted.store.container import SealedModel
from flexserve.trusted.store.gguf import GgufHeader
from flexserve.trusted.store.image import BufferSpec, Image, ImageWriter
from flexserve.trusted.store.manifest import CHUNK
from flexserve.trusted.store.store import Store

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fdopen.restype, _libc.fdopen.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_char_p]
_libc.fclose.restype, _libc.fclose.argtypes = ctypes.c_int, [ctypes.c_void_p]


class SealedWeights:
    """Buffers and tensors of one sealed file, and its image, which is made when there is none that fits."""

    def __init__(
        self, engine: Engine, store: Store, sealed: SealedModel, header: GgufHeader, opening: Opening
    ) -> None:
        """`opening`: what llama.cpp reported of the file. Raises as `Model`."""
        self._engine, self._store, self._infos = engine, store, header.tensors
        self.manifest = sealed.manifest
        self.buffers, self.tensors = opening.buffers, opening.tensors
        self.image = self._fitting(sealed)

    def remake_image(self) -> None:
        """Make the image anew, and restore from the new one. Raises as `Model.remake_image`."""
        with opened(self._engine, self._store, self.manifest.name) as sealed:
            if sealed.manifest.model_id != self.manifest.model_id:
                raise replaced(self.manifest.name)
            self._store.derived.drop_image(self.manifest, self._engine.fingerprint)
            damaged, self.image = self.image, self._made(sealed)
        damaged.close()

    def close(self) -> None:
        """Close the image. Always safe."""
        self.image.close()

    def _fitting(self, sealed: SealedModel) -> Image:
        fingerprint = self._engine.fingerprint
        try:
            image = Image.open(
                self._store.derived.image_path(self.manifest, fingerprint), sealed, fingerprint
            )
            expected = [(kind, size) for kind, _, size in self.buffers]
            layout = [(buffer.name, buffer.size) for buffer in image.buffers]
            if layout == expected and image.chunk == self._engine.flexmem.chunk:
                return image
            image.close()
        except StoredDataError:
            pass  # absent, stale or damaged: it is derived, so it is simply made again
        return self._made(sealed)

    def _made(self, sealed: SealedModel) -> Image:
        fingerprint, store = self._engine.fingerprint, self._store
        path = store.derived.image_path(self.manifest, fingerprint)
        specs = [BufferSpec(kind, size) for kind, _, size in self.buffers]
        with ImageWriter(path, sealed, fingerprint, specs, self._engine.flexmem.chunk) as writer:
            ImageMaker(self._engine, sealed, self._infos, writer, self.tensors).make(self.buffers)
            writer.finish()
        store.derived.drop_stale_images(self.manifest, fingerprint)
        return Image.open(path, sealed, fingerprint)


class Images:
    """The images of all files of an open model as one source of weights (a WeightSource)."""

    def __init__(self, files: Sequence[SealedWeights]) -> None:
        """Buffers count through the files. An image that is made anew is read from then on."""
        self._places = [(file, number) for file in files for number in range(len(file.buffers))]

    def restore(self, buffer: int, index: int, target: memoryview) -> float:
        """See WeightSource."""
        file, number = self._places[buffer]
        return file.image.restore(number, index, target)

    def read(self, buffer: int, index: int, target: memoryview) -> None:
        """See WeightSource."""
        file, number = self._places[buffer]
        file.image.read(number, index, target)

    def decrypt(self, buffer: int, index: int, target: memoryview) -> float:
        """See WeightSource."""
        file, number = self._places[buffer]
        return file.image.decrypt(number, index, target)

    def prefetch(self, buffer: int, index: int, count: int) -> None:
        """See WeightSource."""
        file, number = self._places[buffer]
        file.image.prefetch(number, index, count)


@contextlib.contextmanager
def opened(engine: Engine, store: Store, name: str) -> Iterator[SealedModel]:
    """Have the sealed file `name` open; weights at a chunk's edge are decrypted in secure memory, too."""
    flexmem = engine.flexmem
    scratch = flexmem.reserve(CHUNK)
    try:
        flexmem.commit(scratch, 0, scratch.size)
        view, beat = flexmem.view(scratch, 0, CHUNK), engine.heartbeat.beat
        with store.open(name, scratch=view, read=beat) as sealed:
            yield sealed
    finally:
        flexmem.report_returned(flexmem.free(scratch))


def replaced(name: str) -> UnknownModelError:
    """Return the error that says that another model has the name by now."""
    return UnknownModelError(f"Another model has the name {name!r} now.", hint="Ask again.")


@contextlib.contextmanager
def hollow_file(sealed: SealedModel) -> Iterator[int]:
    """Have a C FILE* of the GGUF open, with its tensor data replaced by a hole."""
    fd = os.memfd_create("gguf-metadata", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, sealed.manifest.size)
        metadata = memoryview(sealed.metadata_bytes())
        while metadata:
            metadata = metadata[os.write(fd, metadata) :]
        os.lseek(fd, 0, os.SEEK_SET)
        stream = _libc.fdopen(fd, b"rb")
        if not stream:
            raise InternalError("fdopen failed.")
    except BaseException:
        os.close(fd)
        raise
    try:
        yield int(stream)
    finally:
        _libc.fclose(stream)
