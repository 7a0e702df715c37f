"""Three function pointers that put all of llama.cpp's memory, and its compute, into our hands.

    alloc_buffer   every buffer (weights, repacked weights, KV, compute, output) gets Flex-Mem
    init_tensor    while a model opens, records where each weight lives, and that there is nothing to read
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
import dataclasses
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

    lazy: bool  # weights are recorded, not read
    hollow: bool  # and have no elements until then, for llama.cpp reads as much of each as it has itself
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


@dataclasses.dataclass(slots=True)
class _Placing:
    """A weight buffer while its model opens: functions of its own, and its tensors' first dimensions."""

    init_tensor: int | None
    set_tensor: int | None
    elements: dict[int, int] = dataclasses.field(default_factory=dict)  # by address of the struct


class Hooks:
    """The installed hooks. Raises InternalError when the library does not fit."""

    def __init__(self, ggml: Ggml, flexmem: FlexMem) -> None:
        self._ggml, self._flexmem = ggml, flexmem
        self._owner: BufferOwner | None = None
        self._arenas: dict[int, Arena] = {}  # by address of the ggml buffer
        self._placing: dict[int, _Placing] = {}  # weight buffers while a model opens, by address
        self._watched: set[int] = set()  # buffers whose tensors the current owner hears of
        self._pending: BaseException | None = None
        # ctypes callbacks must outlive the library's use of them: they live as long as this.
        self._alloc = abi.AllocBuffer(self._guard(self._alloc_plain, None))
        self._free = abi.FreeBuffer(self._guard(self._free_buffer, None))
        self._clear = abi.ClearBuffer(self._guard(self._clear_buffer, None))
        self._settle = abi.InitTensor(self._guard(self._settle_tensor, abi.STATUS_FAILED))
        self._place = abi.InitTensor(self._guard(self._place_weight, abi.STATUS_FAILED))
        self._skip = abi.SetTensor(lambda *_: None)
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
            self._stop_placing()
            self._stop_watching()
        self.raise_pending()

    def raise_pending(self) -> None:
        """Raise the exception of a callback, if there was one."""
        problem, self._pending = self._pending, None
        if problem is not None:
            raise problem

    def set_tensor(self, tensor: int, data: int, size: int) -> None:
        """Write a weight for real (repacking it): `size` bytes of its GGUF form at address `data`."""
        buffer = abi.Tensor.from_address(tensor).buffer
        abi.SetTensor(abi.Buffer.from_address(buffer).iface.set_tensor)(buffer, tensor, data, 0, size)

    # ---- installing ----------------------------------------------------------------------------

    def _install(self) -> None:
        ggml = self._ggml
        device = ggml.device_by_type(abi.DEVICE_TYPE_CPU)
        self._plain_type = abi.BufferType.from_address(ggml.cpu_buffer_type())
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
        """While a model opens, put our functions in the place of a weight buffer's, which may be set anew."""
        if self._owner is not None and self._owner.lazy:
            iface = abi.Buffer.from_address(address).iface
            if iface.init_tensor != _address(self._place):
                self._placing[address] = _Placing(iface.init_tensor, iface.set_tensor)
                iface.init_tensor, iface.set_tensor = _address(self._place), _address(self._skip)

    def _place_weight(self, buffer: int, tensor: int) -> int:
        """Have the owner record a weight, and llama.cpp read none of it.

        For each tensor of a model it makes a buffer to read it to, and clears that byte by byte: this was
        most of the time that opening a model took. A tensor without elements has no bytes. So none has any
        until the end of the load. Those of an adapter, which are small, it reads from the file's hole.
        """
        placing, struct = self._placing[buffer], abi.Tensor.from_address(tensor)
        status = abi.STATUS_SUCCESS
        if placing.init_tensor:
            status = abi.InitTensor(placing.init_tensor)(buffer, tensor)
        if self._owner is not None:
            self._owner.place(tensor, self._ggml.bytes_of(tensor))
        if self._owner is not None and self._owner.hollow:
            placing.elements[tensor] = struct.ne[0]
            struct.ne[0] = 0
        return status

    def _stop_placing(self) -> None:
        """Give the weights their elements back, and their buffers their own functions.

        What llama.cpp freed again, because it could not open the model, is not there any more.
        """
        for address, placing in self._placing.items():
            iface = abi.Buffer.from_address(address).iface
            iface.init_tensor, iface.set_tensor = placing.init_tensor, placing.set_tensor
            for tensor, elements in placing.elements.items():
                abi.Tensor.from_address(tensor).ne[0] = elements
        self._placing.clear()

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
        self._placing.pop(address, None)
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
