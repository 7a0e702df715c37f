"""Opening a sealed model in llama.cpp without reading its weights.

The loader is given a file that is the GGUF's metadata followed by a hole as long as the tensor
data. The hooks record the place of each tensor, and have it read nothing. What comes out is a complete
model object over address space with no memory behind it. The image fills that address space on demand
(trusted.weights.residency). An adapter is opened in the same way, over the model that it changes: its
tensors are weights like the others.
"""

from __future__ import annotations

import ctypes

from flexserve.errors import StoredDataError
from flexserve.trusted.engine import abi
from flexserve.trusted.engine.graph import Extent, WeightMap
from flexserve.trusted.engine.library import lib
from flexserve.trusted.engine.placement import Opening
from flexserve.trusted.engine.runtime import Engine
from flexserve.trusted.engine.sealed_weights import Images, SealedWeights, hollow_file, opened, replaced
from flexserve.trusted.store.container import SealedModel
from flexserve.trusted.store.gguf import GgufHeader
from flexserve.trusted.store.manifest import Manifest
from flexserve.trusted.store.store import Store
from flexserve.trusted.weights.chunks import Part, Weights


class Model:
    """A sealed model, opened: metadata in llama.cpp, weights as chunks that come and go.

    `address` is the `llama_model`. `manifest` is that of the file that was named, `header` that of the model:
    they differ where the file is an adapter. Not thread-safe: belongs to the engine thread.
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
        self._adapter: ctypes._Pointer[ctypes.c_void_p] | None = None
        self._store = store
        self._files: list[SealedWeights] = []
        try:
            with opened(engine, store, name) as sealed:
                self.manifest = sealed.manifest
                *_, changed = store.files_of(sealed.manifest)
                if changed == sealed.manifest:
                    self._open(sealed)
                else:
                    with opened(engine, store, changed.name) as base:
                        if base.manifest != changed:
                            raise replaced(changed.name)
                        self._open(base)
                    self._open_adapter(sealed)
            buffers = [buffer for file in self._files for buffer in file.buffers]
            parts = [Part(arena, size) for _, arena, size in buffers]
            self.weights = Weights(name, parts, Images(self._files), engine.flexmem.chunk)
            self.map = WeightMap(self._extents())
        except BaseException:
            self.close()
            raise

    def remake_image(self) -> None:
        """Make the images anew, of which one turned out to be damaged, and restore from the new ones.

        The weights must be without memory and in no loader's hands. Raises StoredDataError when a sealed
        file is damaged, too, UnknownModelError when it is gone, NormalWorldError (disk full) or
        GrantRefusedError; the next attempt may succeed.
        """
        for file in self._files:
            file.remake_image()

    def close(self) -> None:
        """Free the model, its memory and its files. Always safe."""
        if self.address:
            with self.engine.hooks.owner(Opening()):
                lib.llama_model_free(self.address)  # and its adapter
            self.address = 0
        for file in self._files:
            file.close()
        self._files.clear()

    @property
    def manifests(self) -> list[Manifest]:
        """What the store says of each file that it was opened from."""
        return [file.manifest for file in self._files]

    @property
    def vocabulary(self) -> int:
        """The `llama_vocab`."""
        return int(lib.llama_model_get_vocab(self.address))

    @property
    def trained_context(self) -> int:
        """Tokens of context that the model was trained for."""
        return int(lib.llama_model_n_ctx_train(self.address))

    def change(self, context: int) -> bool:
        """Have a `llama_context` compute with the adapter, if there is one; return whether there is."""
        if self._adapter is None or self.manifest.adapts is None:
            return False
        adapters = (lib.llama_adapter_lora_p_ctypes * 1)(self._adapter)
        scales = (ctypes.c_float * 1)(self.manifest.adapts.scale)
        return bool(lib.llama_set_adapters_lora(context, adapters, 1, scales) == 0)

    # ---- opening -----------------------------------------------------------------------------

    def _open(self, sealed: SealedModel) -> None:
        header = sealed.header()
        self.header = header.without_lists()  # llama.cpp has the vocabulary
        opening = Opening()
        parameters = lib.llama_model_default_params()
        parameters.n_gpu_layers = 0
        parameters.load_mode = lib.LLAMA_LOAD_MODE_NONE
        parameters.lazy_mode = lib.LLAMA_LAZY_MODE_OFF
        parameters.use_extra_bufts = not (self.engine.keeps_layout and _suits_npu(header))
        with hollow_file(sealed) as stream, self.engine.hooks.owner(opening):
            self.address = lib.llama_model_load_from_file_ptr(stream, parameters) or 0
        if not self.address:
            raise StoredDataError(
                f"llama.cpp cannot open {self.name!r} ({header.architecture}).",
                hint="Its architecture may be unknown to this llama.cpp, or tensors are missing.",
                code="model_unsupported",
            )
        self._files.append(SealedWeights(self.engine, self._store, sealed, self.header, opening))

    def _open_adapter(self, sealed: SealedModel) -> None:
        header = sealed.header(self.header)
        opening = Opening(hollow=False)
        with hollow_file(sealed) as stream, self.engine.hooks.owner(opening):
            self._adapter = lib.llama_adapter_lora_init_from_file_ptr(self.address, stream) or None
        if self._adapter is None:
            raise StoredDataError(
                f"llama.cpp cannot open the adapter {self.name!r}.",
                hint="Convert it again, for the model that it changes.",
                code="model_unsupported",
            )
        self._files.append(SealedWeights(self.engine, self._store, sealed, header.without_lists(), opening))

    def _extents(self) -> list[Extent]:
        """Return where each tensor lives; a tensor reaches to the next one (layouts may pad)."""
        chunk = self.engine.flexmem.chunk
        places = [tensor.address for file in self._files for tensor in file.tensors]
        extents: list[Extent] = []
        for part, (arena, size) in enumerate((part.arena, part.size) for part in self.weights.parts):
            inside = sorted({place for place in places if arena.base <= place < arena.base + size})
            for start, stop in zip(inside, [*inside[1:], arena.base + size], strict=True):
                first = (start - arena.base) // chunk
                count = (stop - 1 - arena.base) // chunk - first + 1
                extents.append(Extent(start, stop, self.weights.base(part) + first, count))
        return extents


def _suits_npu(header: GgufHeader) -> bool:
    """Return whether most of the weights are what the NPU multiplies, if they are not repacked."""
    sizes = [(info.type == abi.TYPE_Q8_0, info.size) for info in header.tensors]
    return 2 * sum(size for suits, size in sizes if suits) > sum(size for _, size in sizes)
