"""Making an image: llama.cpp lays each tensor out as it computes with it, and what comes out is encrypted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flexserve.errors import StoredDataError
from flexserve.platforms.ports import Arena
from flexserve.trusted.engine.placement import Placed
from flexserve.trusted.engine.runtime import Engine
from flexserve.trusted.store.container import SealedModel
from flexserve.trusted.store.gguf import TensorInfo
from flexserve.trusted.store.image import ImageWriter
from flexserve.units import MIB, align_up

_FLUSH_EVERY = 256 * MIB  # bytes of an image: what the disk is given at once, it takes within a minute


class ImageMaker:
    """Writes each tensor through llama.cpp's own repacking and encrypts the buffers behind it.

    Works in address order and gives every chunk back once it is encrypted, so making the
    image of a model needs memory for its largest tensor (twice), not for the model.
    """

    def __init__(
        self,
        engine: Engine,
        sealed: SealedModel,
        infos: Sequence[TensorInfo],
        writer: ImageWriter,
        tensors: Sequence[Placed],
    ) -> None:
        self._engine, self._sealed, self._writer = engine, sealed, writer
        self._files: Mapping[str, TensorInfo] = {info.name: info for info in infos}
        self._tensors = sorted(tensors, key=lambda t: t.address)

    def make(self, buffers: Sequence[tuple[str, Arena, int]]) -> None:
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

    def _write(self, tensor: Placed, staging: Arena) -> None:
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
