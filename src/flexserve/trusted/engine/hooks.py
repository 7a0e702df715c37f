"""Three function pointers that put all of llama.cpp's memory, and its compute, into our hands.

    alloc_buffer   every buffer (weights, repacked weights, KV, compute, output) gets Flex-Mem
    set_tensor     while a model opens, records where each weight lives instead of writing it
    graph_compute  runs each graph through the residency barrier, with its work area in Flex-Mem

The library is process-wide, so there is one `Hooks` per process. What a callback must do
depends on who is calling into llama.cpp; that is the current `BufferOwner`, set with
`Hooks.owner(...)` around the call. All calls into llama.cpp come from one engine thread.
An exception cannot cross C frames: it is kept, the library is told that it failed, and
`raise_pending` raises it on the other side.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import ParamSpec, Protocol, TypeVar

from flexserve.errors import InternalError
from flexserve.platforms.ports import Arena
from flexserve.trusted.engine import abi
from flexserve.trusted.engine.ggml import Ggml
from flexserve.trusted.memory.flexmem import FlexMem

P = ParamSpec("P")
R = TypeVar("R")


class BufferOwner(Protocol):
    """Who the buffers of a call into llama.cpp belong to: a model or one of its contexts."""

    lazy: bool  # weights are recorded, not written
    watches: bool  # wants to hear of the tensors in its buffers, by `settle`

    def adopt(self, kind: str, address: int, arena: Arena, size: int) -> None:
        """Record a new buffer of type `kind`: its struct at `address`, `size` bytes in `arena`."""

    def drop(self, address: int) -> None:
        """Forget the buffer whose struct was at `address`."""

    def place(self, tensor: int, size: int) -> None:
        """Record a weight tensor (address of its struct) of `size` bytes in its GGUF form."""

    def settle(self, buffer: int, tensor: int) -> None:
        """Record a tensor (address of its struct) that got its place in `buffer`."""

    def compute(self, graph: int) -> int:
        """Run a `ggml_cgraph`; return a ggml status."""


class Hooks:
    """The installed hooks. Raises InternalError when the library does not fit."""

    def __init__(self, ggml: Ggml, flexmem: FlexMem) -> None:
        self._ggml, self._flexmem = ggml, flexmem
        self._owner: BufferOwner | None = None
        self._arenas: dict[int, Arena] = {}  # by address of the ggml buffer
        self._set_tensor: dict[int, int] = {}  # the original of each diverted buffer
        self._watched: set[int] = set()  # buffers whose tensors the current owner hears of
        self._pending: BaseException | None = None
        # ctypes callbacks must outlive the library's use of them: they live as long as this.
        self._alloc = abi.AllocBuffer(self._guard(self._alloc_plain, None))
        self._free = abi.FreeBuffer(self._guard(self._free_buffer, None))
        self._clear = abi.ClearBuffer(self._guard(self._clear_buffer, None))
        self._settle = abi.InitTensor(self._guard(self._settle_tensor, abi.STATUS_FAILED))
        self._record = abi.SetTensor(self._guard(self._record_tensor, None))
        self._compute = abi.GraphCompute(self._guard(self._graph_compute, abi.STATUS_FAILED))
        self._init = abi.InitBackend(self._guard(self._init_backend, None))
        self._extra_allocs: list[object] = []
        self._install()

    # ---- for callers of llama.cpp -------------------------------------------------------------

    @contextlib.contextmanager
    def owner(self, owner: BufferOwner) -> Iterator[None]:
        """Attribute what llama.cpp does inside the block to `owner`; raise what its callbacks raised."""
        previous, self._owner = self._owner, owner
        try:
            yield
        finally:
            self._owner = previous
            self._restore_host()
            self._stop_watching()
        self.raise_pending()

    def raise_pending(self) -> None:
        """Raise the exception of a callback, if there was one."""
        problem, self._pending = self._pending, None
        if problem is not None:
            raise problem

    def set_tensor(self, tensor: int, data: int, size: int) -> None:
        """Write a weight for real (repacking it): `size` bytes of its GGUF form at address `data`."""
        struct = abi.Tensor.from_address(tensor)
        original = abi.SetTensor(self._set_tensor[struct.buffer])
        original(struct.buffer, tensor, data, 0, size)

    # ---- installing ----------------------------------------------------------------------------

    def _install(self) -> None:
        ggml = self._ggml
        device = ggml.device_by_type(abi.DEVICE_TYPE_CPU)
        self._plain_type = abi.BufferType.from_address(ggml.cpu_buffer_type())
        self._is_host = self._plain_type.iface.is_host
        self._plain_type.iface.alloc_buffer = _address(self._alloc)
        for address in ggml.extra_buffer_types(device):
            extra = abi.BufferType.from_address(address)
            original = abi.AllocBuffer(extra.iface.alloc_buffer)
            wrapper = abi.AllocBuffer(self._guard(self._extra_alloc(original), None))
            self._extra_allocs += [original, wrapper]
            extra.iface.alloc_buffer = _address(wrapper)
        cpu = abi.Device.from_address(device)
        self._original_init = abi.InitBackend(cpu.iface.init_backend)
        cpu.iface.init_backend = _address(self._init)

    def _guard(self, callback: Callable[P, R], failed: R) -> Callable[P, R]:
        """Return `callback` made safe for C: its exception is kept and `failed` is returned."""

        def guarded(*arguments: P.args, **named: P.kwargs) -> R:
            try:
                return callback(*arguments, **named)
            except BaseException as problem:  # raised again by raise_pending
                self._pending = self._pending or problem
                return failed

        return guarded

    # ---- buffers -------------------------------------------------------------------------------

    def _alloc_plain(self, buffer_type: int, size: int) -> int | None:
        return self._adopt(buffer_type, size, self._plain_interface())

    def _plain_interface(self) -> abi.BufferInterface:
        """Return the interface of ggml's own buffer over foreign memory."""
        address = self._ggml.buffer_from_pointer(4096, 1)  # never dereferenced
        interface = abi.BufferInterface.from_buffer_copy(abi.Buffer.from_address(address).iface)
        self._ggml.buffer_free(address)
        return interface

    def _extra_alloc(self, original: Callable[[int, int], int | None]) -> Callable[[int, int], int | None]:
        def alloc(buffer_type: int, size: int) -> int | None:
            address = original(buffer_type, size)
            if not address:
                return None
            if address not in self._arenas:
                # It has memory of its own (untouched yet): keep its methods, replace the memory.
                buffer = abi.Buffer.from_address(address)
                if buffer.context != self._ggml.buffer_base(address):
                    raise InternalError(
                        "An extra buffer type of llama.cpp keeps its memory in an unknown place."
                    )
                interface = abi.BufferInterface.from_buffer_copy(buffer.iface)
                self._ggml.buffer_free(address)
                address = self._adopt(buffer_type, size, interface)
            self._divert(address)
            return address

        return alloc

    def _adopt(self, buffer_type: int, size: int, interface: abi.BufferInterface) -> int:
        if self._owner is None:
            raise InternalError("llama.cpp allocates a buffer that belongs to nobody.")
        arena = self._flexmem.reserve(max(size, 1))
        interface.free_buffer = _address(self._free)
        interface.clear = _address(self._clear)
        if self._owner.watches:
            interface.init_tensor = _address(self._settle)
        address: int = self._ggml.buffer_init(buffer_type, interface, arena.base, size)
        self._arenas[address] = arena
        if self._owner.watches:
            self._watched.add(address)
        self._owner.adopt(self._ggml.buffer_type_name(buffer_type).decode(), address, arena, size)
        if buffer_type == ctypes.addressof(self._plain_type):
            self._divert(address)
        return address

    def _divert(self, address: int) -> None:
        """While a model opens, record its tensors instead of writing them.

        ggml reads file data straight into "host" buffers without calling set_tensor, so from
        the first weight buffer to the end of the load the plain type says that it is not host.
        By then every decision that looks at this (which buffer type for which tensor) is made.
        """
        if self._owner is None or not self._owner.lazy:
            return
        buffer = abi.Buffer.from_address(address)
        if buffer.iface.set_tensor != _address(self._record):
            self._set_tensor[address] = buffer.iface.set_tensor
            buffer.iface.set_tensor = _address(self._record)
        self._plain_type.iface.is_host = None

    def _restore_host(self) -> None:
        self._plain_type.iface.is_host = self._is_host

    def _record_tensor(self, _buffer: int, tensor: int, _data: int, offset: int, size: int) -> None:
        if self._owner is None or offset != 0:
            raise InternalError("llama.cpp loads a weight in pieces; it cannot be opened without reading it.")
        self._owner.place(tensor, size)

    def _settle_tensor(self, buffer: int, tensor: int) -> int:
        if self._owner is not None:
            self._owner.settle(buffer, tensor)
        return abi.STATUS_SUCCESS

    def _stop_watching(self) -> None:
        """Take the callback out: compute buffers place every tensor of every graph."""
        for address in self._watched:
            abi.Buffer.from_address(address).iface.init_tensor = None
        self._watched.clear()

    def _free_buffer(self, address: int) -> None:
        self._watched.discard(address)
        self._set_tensor.pop(address, None)
        arena = self._arenas.pop(address)
        if self._owner is not None:
            self._owner.drop(address)
        self._flexmem.report_returned(self._flexmem.free(arena))

    def _clear_buffer(self, address: int, value: int) -> None:
        arena = self._arenas[address]
        owner = self._owner
        if value == 0 and owner is not None and not (owner.lazy or owner.watches):
            # A buffer made anew in the middle of a decode, to be written next.
            self._flexmem.recycle_all(arena)
            self._flexmem.commit_missing(arena)
        elif value == 0:
            # Released memory reads as zeros when it comes back: clearing is giving back.
            self._flexmem.report_returned(self._flexmem.release_all(arena))
        else:
            self._flexmem.commit_missing(arena)
            ctypes.memset(arena.base, value, abi.Buffer.from_address(address).size)

    # ---- compute -------------------------------------------------------------------------------

    def _init_backend(self, device: int, parameters: bytes | None) -> int | None:
        address: int | None = self._original_init(device, parameters)
        if address:
            abi.Backend.from_address(address).iface.graph_compute = _address(self._compute)
        return address

    def _graph_compute(self, _backend: int, graph: int) -> int:
        if self._owner is None:
            raise InternalError("llama.cpp computes a graph that belongs to nobody.")
        return self._owner.compute(graph)


def _address(callback: object) -> int:
    """Return the machine address of a ctypes callback."""
    return ctypes.cast(callback, ctypes.c_void_p).value or 0  # type: ignore[arg-type]
