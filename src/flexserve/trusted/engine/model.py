"""Opening a sealed model in llama.cpp without reading its weights, and making its image.

The loader is given a file that is the GGUF's metadata followed by a hole as long as the tensor
data. The hooks record the place of each tensor, and have it read nothing. What comes out is a complete
model object over address space with no memory behind it. The image fills that address space on demand
(trusted.weights.residency).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

from flexserve.errors import InternalError, StoredDataError, UnknownModelError
from flexserve.platforms.ports import Arena
from flexserve.trusted.engine import abi
from flexserve.trusted.engine.graph import Extent, WeightMap
from flexserve.trusted.engine.library import lib
from flexserve.trusted.engine.runtime import Engine
from flexserve.trusted.store.container import SealedModel
from flexserve.trusted.store.image import BufferSpec, Image, ImageWriter
from flexserve.trusted.store.manifest import CHUNK
from flexserve.trusted.store.store import Store
from flexserve.trusted.weights.chunks import Part, Weights
from flexserve.units import MIB, align_up

_FLUSH_EVERY = 256 * MIB  # bytes of an image: what the disk is given at once, it takes within a minute
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fdopen.restype, _libc.fdopen.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_char_p]
_libc.fclose.restype, _libc.fclose.argtypes = ctypes.c_int, [ctypes.c_void_p]


class _Placed:
    """A weight tensor: address of its struct, bytes of its GGUF form."""

    __slots__ = ("size", "struct", "tensor")

    def __init__(self, tensor: int, size: int) -> None:
        self.tensor, self.size = tensor, size
        self.struct = abi.Tensor.from_address(tensor)

    @property
    def name(self) -> str:
        return bytes(self.struct.name).decode()

    @property
    def address(self) -> int:
        return int(self.struct.data)


class _Opening:
    """Collects what the hooks report while llama.cpp builds the model (a BufferOwner)."""

    lazy = True
    watches = False

    def __init__(self) -> None:
        self.buffers: list[tuple[str, Arena, int]] = []
        self.tensors: list[_Placed] = []

    def adopt(self, kind: str, _address: int, arena: Arena, size: int) -> None:
        """Record a weight buffer."""
        self.buffers.append((kind, arena, size))

    def drop(self, _address: int) -> None:
        """A model is freed whole."""

    def place(self, tensor: int, size: int) -> None:
        """Record where a tensor lives."""
        self.tensors.append(_Placed(tensor, size))

    def settle(self, _buffer: int, _tensor: int) -> None:
        """Nothing is watched."""

    def compute(self, _graph: int) -> int:
        """No graph runs while a model opens."""
        raise InternalError("llama.cpp computes while it opens a model.")


class Model:
    """A sealed model, opened: metadata in llama.cpp, weights as chunks that come and go.

    `address` is the `llama_model`. Not thread-safe: belongs to the engine thread.
    """

    def __init__(self, engine: Engine, store: Store, name: str) -> None:
        """Open model `name` of `store`; make its image first when there is none that fits.

        Raises UnknownModelError, StoredDataError, NormalWorldError (disk full) or
        GrantRefusedError; nothing stays open then. The engine is told (`moved`) of each piece that is
        read or written, for an image may take long.
        """
        self.engine = engine
        self.name = name
        self.address = 0
        self.image: Image | None = None
        self._store = store
        try:
            with self._sealed() as sealed:
                self.manifest = sealed.manifest
                self.header = sealed.header().without_lists()  # llama.cpp has the vocabulary
                opening = self._open(sealed)
                self._buffers, self._tensors = opening.buffers, opening.tensors
                self.image = self._image(sealed)
            parts = [Part(arena, size) for _, arena, size in opening.buffers]
            self.weights = Weights(name, parts, self.image, engine.flexmem.chunk)
            self.map = WeightMap(self._extents(opening.tensors))
        except BaseException:
            self.close()
            raise

    def remake_image(self) -> None:
        """Make the image anew, which turned out to be damaged, and restore from the new one.

        The weights must be without memory and in no loader's hands. Raises StoredDataError when the sealed
        model is damaged, too, UnknownModelError when it is gone, NormalWorldError (disk full) or
        GrantRefusedError; the next attempt may succeed.
        """
        with self._sealed() as sealed:
            if sealed.manifest.model_id != self.manifest.model_id:
                raise UnknownModelError(f"Another model has the name {self.name!r} now.", hint="Ask again.")
            self._store.drop_image(self.manifest, self.engine.fingerprint)
            damaged, self.image = self.image, self._made_image(sealed)
        self.weights.source = self.image
        if damaged is not None:
            damaged.close()

    @contextlib.contextmanager
    def _sealed(self) -> Iterator[SealedModel]:
        """Have the sealed model open; weights at a chunk's edge are decrypted in secure memory, too."""
        flexmem = self.engine.flexmem
        scratch = flexmem.reserve(CHUNK)
        try:
            flexmem.commit(scratch, 0, scratch.size)
            view, beat = flexmem.view(scratch, 0, CHUNK), self.engine.heartbeat.beat
            with self._store.open(self.name, scratch=view, read=beat) as sealed:
                yield sealed
        finally:
            flexmem.report_returned(flexmem.free(scratch))

    def close(self) -> None:
        """Free the model, its memory and its files. Always safe."""
        if self.address:
            with self.engine.hooks.owner(_Opening()):
                lib.llama_model_free(self.address)
            self.address = 0
        if self.image is not None:
            self.image.close()
            self.image = None

    @property
    def vocabulary(self) -> int:
        """The `llama_vocab`."""
        return int(lib.llama_model_get_vocab(self.address))

    @property
    def trained_context(self) -> int:
        """Tokens of context that the model was trained for."""
        return int(lib.llama_model_n_ctx_train(self.address))

    # ---- opening -----------------------------------------------------------------------------

    def _open(self, sealed: SealedModel) -> _Opening:
        opening = _Opening()
        parameters = lib.llama_model_default_params()
        parameters.n_gpu_layers = 0
        parameters.load_mode = lib.LLAMA_LOAD_MODE_NONE
        parameters.lazy_mode = lib.LLAMA_LAZY_MODE_OFF
        parameters.use_extra_bufts = not (self.engine.keeps_layout and self._suits_npu())
        stream = _hollow_file(sealed)
        try:
            with self.engine.hooks.owner(opening):
                self.address = lib.llama_model_load_from_file_ptr(stream, parameters) or 0
        finally:
            _libc.fclose(stream)
        if not self.address:
            raise StoredDataError(
                f"llama.cpp cannot open {self.name!r} ({self.header.architecture}).",
                hint="Its architecture may be unknown to this llama.cpp, or tensors are missing.",
                code="model_unsupported",
            )
        return opening

    def _suits_npu(self) -> bool:
        """Return whether most of the weights are what the NPU multiplies, if they are not repacked."""
        sizes = [(info.type == abi.TYPE_Q8_0, info.size) for info in self.header.tensors]
        return 2 * sum(size for suits, size in sizes if suits) > sum(size for _, size in sizes)

    def _extents(self, tensors: list[_Placed]) -> list[Extent]:
        """Return where each tensor lives; a tensor reaches to the next one (layouts may pad)."""
        chunk = self.engine.flexmem.chunk
        extents: list[Extent] = []
        for part, (_, arena, size) in enumerate(self._buffers):
            inside = sorted({t.address for t in tensors if arena.base <= t.address < arena.base + size})
            for start, stop in zip(inside, [*inside[1:], arena.base + size], strict=True):
                first = (start - arena.base) // chunk
                count = (stop - 1 - arena.base) // chunk - first + 1
                extents.append(Extent(start, stop, self.weights.base(part) + first, count))
        return extents

    # ---- the image ---------------------------------------------------------------------------

    def _image(self, sealed: SealedModel) -> Image:
        fingerprint = self.engine.fingerprint
        try:
            image = Image.open(self._store.image_path(self.manifest, fingerprint), sealed, fingerprint)
            expected = [(kind, size) for kind, _, size in self._buffers]
            layout = [(buffer.name, buffer.size) for buffer in image.buffers]
            if layout == expected and image.chunk == self.engine.flexmem.chunk:
                return image
            image.close()
        except StoredDataError:
            pass  # absent, stale or damaged: it is derived, so it is simply made again
        return self._made_image(sealed)

    def _made_image(self, sealed: SealedModel) -> Image:
        fingerprint, store = self.engine.fingerprint, self._store
        path = store.image_path(self.manifest, fingerprint)
        specs = [BufferSpec(kind, size) for kind, _, size in self._buffers]
        with ImageWriter(path, sealed, fingerprint, specs, self.engine.flexmem.chunk) as writer:
            _ImageMaker(self, sealed, writer, self._tensors).make(self._buffers)
            writer.finish()
        store.drop_stale_images(self.manifest, fingerprint)
        return Image.open(path, sealed, fingerprint)


class _ImageMaker:
    """Writes each tensor through llama.cpp's own repacking and encrypts the buffers behind it.

    Works in address order and gives every chunk back once it is encrypted, so making the
    image of a model needs memory for its largest tensor (twice), not for the model.
    """

    def __init__(
        self, model: Model, sealed: SealedModel, writer: ImageWriter, tensors: list[_Placed]
    ) -> None:
        self._engine, self._sealed, self._writer = model.engine, sealed, writer
        self._files = {info.name: info for info in model.header.tensors}
        self._tensors = sorted(tensors, key=lambda t: t.address)

    def make(self, buffers: list[tuple[str, Arena, int]]) -> None:
        """Write all chunks of all buffers; they are without memory afterwards, as before."""
        flexmem = self._engine.flexmem
        staging = flexmem.reserve(max(t.size for t in self._tensors))
        try:
            flexmem.commit(staging, 0, staging.size)
            for number, (_, arena, size) in enumerate(buffers):
                self._make_buffer(number, arena, size, staging)
        finally:
            for _, arena, _ in buffers:
                flexmem.release_all(arena)
            flexmem.report_returned(flexmem.free(staging) + flexmem.return_unused())

    def _make_buffer(self, number: int, arena: Arena, size: int, staging: Arena) -> None:
        inside = [t for t in self._tensors if arena.base <= t.address < arena.base + size]
        starts = [t.address - arena.base for t in inside]
        window = _Window(self._engine, self._writer, number, arena, size)
        for tensor, start, stop in zip(inside, starts, [*starts[1:], size], strict=True):
            window.move(start, stop)  # whatever its layout, a tensor ends before the next one
            self._write(tensor, staging)
        window.move(size, size)

    def _write(self, tensor: _Placed, staging: Arena) -> None:
        info = self._files.get(tensor.name)
        if info is None or info.size != tensor.size:
            raise StoredDataError(
                f"Tensor {tensor.name!r} is not in the file as llama.cpp expects it.",
                hint="Add the model again.",
            )
        self._sealed.read_into(info.offset, self._engine.flexmem.view(staging, 0, tensor.size))
        self._engine.hooks.set_tensor(tensor.tensor, staging.base, tensor.size)
        self._engine.heartbeat.beat()


class _Window:
    """The committed part of a buffer that is being written front to back."""

    def __init__(self, engine: Engine, writer: ImageWriter, number: int, arena: Arena, size: int) -> None:
        self._engine, self._flexmem, self._writer = engine, engine.flexmem, writer
        self._number, self._arena, self._size = number, arena, size
        self._start = self._stop = 0  # committed bytes of the arena
        self._flushed = 0  # where the next flush of the file counts from

    def move(self, start: int, stop: int) -> None:
        """Have [start, stop) in memory; encrypt and release the whole chunks before `start`."""
        chunk = self._flexmem.chunk
        end = align_up(stop, chunk)
        if end > self._stop:
            self._flexmem.commit(self._arena, self._stop, end - self._stop)
            self._stop = end
        while self._start + chunk <= start or start == self._size > self._start:
            length = min(chunk, self._size - self._start)
            view = self._flexmem.view(self._arena, self._start, length)
            self._writer.write(self._number, self._start // chunk, view)
            self._flexmem.recycle(self._arena, self._start, chunk)
            self._start += chunk
            if self._start - self._flushed >= _FLUSH_EVERY:
                self._writer.flush()
                self._flushed = self._start
            self._engine.heartbeat.beat()


def _hollow_file(sealed: SealedModel) -> int:
    """Return a C FILE* of the GGUF with its tensor data replaced by a hole."""
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
        return int(stream)
    except BaseException:
        os.close(fd)
        raise
