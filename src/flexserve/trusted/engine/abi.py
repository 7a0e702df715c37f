"""The part of ggml's ABI that the hooks touch, and the guard that refuses any other.

llama.cpp offers no stable interface for what we need: which memory a buffer lives in, and when
a graph computes. Both are reached through structs of function pointers
(`ggml-backend-impl.h`, `ggml.h`, `ggml-impl.h`, `ggml-cpu.h` of the pinned version). Their
layout is declared here once; `check()` proves at start, on live objects and through the
library's own accessors, that the declarations fit the library that was loaded. A mismatch is
refused before any model is opened.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from ctypes import (
    POINTER,
    Structure,
    c_bool,
    c_char,
    c_char_p,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint,
    c_uint64,
    c_void_p,
)
from typing import Any

from flexserve.errors import InternalError, NormalWorldError

PINNED_VERSION = "0.3.36"  # of llama-cpp-python; the declarations below are this version's
BACKEND_API_VERSION = 2
MAX_SRC = 10
DEVICE_TYPE_CPU = 0
STATUS_SUCCESS = 0
STATUS_FAILED = -1
STATUS_ABORTED = 1
OP_MUL_MAT, OP_FLASH_ATTN = 29, 74
OPS_OF_NO_EFFECT = range(36, 40)  # RESHAPE, VIEW, PERMUTE, TRANSPOSE
OPS_OF_UNKNOWN_EFFECT = range(92, 96)  # MAP_CUSTOM1 …, CUSTOM
TYPE_F32, TYPE_Q8_0 = 0, 8

# ---- callbacks ---------------------------------------------------------------------------

AllocBuffer = ctypes.CFUNCTYPE(c_void_p, c_void_p, c_size_t)  # (buffer type, size) → buffer
FreeBuffer = ctypes.CFUNCTYPE(None, c_void_p)
SetTensor = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_void_p, c_size_t, c_size_t)
InitTensor = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p)  # (buffer, tensor) → status
ClearBuffer = ctypes.CFUNCTYPE(None, c_void_p, ctypes.c_uint8)
InitBackend = ctypes.CFUNCTYPE(c_void_p, c_void_p, c_char_p)
GraphCompute = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p)  # (backend, graph) → status
AbortCallback = ctypes.CFUNCTYPE(c_bool, c_void_p)

# ---- structs -----------------------------------------------------------------------------


def _pointers(*names: str) -> list[tuple[str, Any]]:
    return [(name, c_void_p) for name in names]


class BufferTypeInterface(Structure):
    """`ggml_backend_buffer_type_i`."""

    _fields_ = _pointers(
        "get_name", "alloc_buffer", "get_alignment", "get_max_size", "get_alloc_size", "is_host"
    )


class BufferType(Structure):
    """`ggml_backend_buffer_type`."""

    _fields_ = [("iface", BufferTypeInterface), *_pointers("device", "context")]


class BufferInterface(Structure):
    """`ggml_backend_buffer_i`."""

    _fields_ = _pointers(
        "free_buffer",
        "get_base",
        "init_tensor",
        "memset_tensor",
        "set_tensor",
        "get_tensor",
        "set_tensor_2d",
        "get_tensor_2d",
        "cpy_tensor",
        "clear",
        "reset",
    )


class Buffer(Structure):
    """`ggml_backend_buffer`."""

    _fields_ = [
        ("iface", BufferInterface),
        ("buft", c_void_p),
        ("context", c_void_p),
        ("size", c_size_t),
        ("usage", c_int),
    ]


class DeviceInterface(Structure):
    """`ggml_backend_device_i`."""

    _fields_ = _pointers(
        "get_name",
        "get_description",
        "get_memory",
        "get_type",
        "get_props",
        "init_backend",
        "get_buffer_type",
        "get_host_buffer_type",
        "buffer_from_host_ptr",
        "supports_op",
        "supports_buft",
        "offload_op",
        "event_new",
        "event_free",
        "event_synchronize",
    )


class Device(Structure):
    """`ggml_backend_device`."""

    _fields_ = [("iface", DeviceInterface), *_pointers("reg", "context")]


class Registry(Structure):
    """`ggml_backend_reg`."""

    _fields_ = [
        ("api_version", c_int),
        *_pointers("get_name", "get_device_count", "get_device", "get_proc_address", "context"),
    ]


class BackendInterface(Structure):
    """`ggml_backend_i`."""

    _fields_ = _pointers(
        "get_name",
        "free",
        "set_tensor_async",
        "get_tensor_async",
        "set_tensor_2d_async",
        "get_tensor_2d_async",
        "cpy_tensor_async",
        "synchronize",
        "graph_plan_create",
        "graph_plan_free",
        "graph_plan_update",
        "graph_plan_compute",
        "graph_compute",
        "event_record",
        "event_wait",
        "graph_optimize",
    )


class Backend(Structure):
    """`ggml_backend`."""

    _fields_ = [("guid", c_void_p), ("iface", BackendInterface), *_pointers("device", "context")]


class Graph(Structure):
    """`ggml_cgraph`."""

    _fields_ = [
        ("size", c_int),
        ("n_nodes", c_int),
        ("n_leafs", c_int),
        ("nodes", c_void_p),
        ("grads", c_void_p),
        ("grad_accs", c_void_p),
        ("leafs", c_void_p),
        ("use_counts", c_void_p),
        ("hash_size", c_size_t),
        ("hash_used", c_void_p),
        ("hash_keys", c_void_p),
        ("order", c_int),
        ("uid", c_uint64),
    ]

    def slice(self, start: int, stop: int) -> Graph:
        """Return the graph of nodes [start, stop), as `ggml_graph_view` makes it. Borrows the nodes."""
        part = Graph.from_buffer_copy(self)
        part.size = 0
        part.n_nodes = stop - start
        part.n_leafs = 0
        part.nodes = self.nodes + start * ctypes.sizeof(c_void_p)
        part.grads = part.grad_accs = part.leafs = None
        part.uid = 0  # a slice is no graph that a backend may recognise
        return part

    def pick(self, nodes: Sequence[int]) -> Graph:
        """Return the graph of these nodes, in this order. Borrows them."""
        part = self.slice(0, len(nodes))
        pointers = (c_void_p * self.n_nodes).from_address(self.nodes)
        part.picked = (c_void_p * len(nodes))(*(pointers[node] for node in nodes))  # lives as long as `part`
        part.nodes = ctypes.addressof(part.picked)
        return part


class Plan(Structure):
    """`ggml_cplan`."""

    _fields_ = [
        ("work_size", c_size_t),
        ("work_data", c_void_p),
        ("n_threads", c_int),
        ("threadpool", c_void_p),
        ("abort_callback", AbortCallback),
        ("abort_callback_data", c_void_p),
        ("use_ref", c_bool),
    ]


class Tensor(Structure):
    """`ggml_tensor`."""

    _fields_ = [
        ("type", c_int),
        ("buffer", c_void_p),
        ("ne", c_int64 * 4),
        ("nb", c_size_t * 4),
        ("op", c_int),
        ("op_params", c_int32 * 16),
        ("flags", c_int32),
        ("src", c_void_p * MAX_SRC),
        ("view_src", c_void_p),
        ("view_offs", c_size_t),
        ("data", c_void_p),
        ("name", c_char * 64),
        ("extra", c_void_p),
        ("padding", c_char * 8),
    ]


# ---- the library -------------------------------------------------------------------------


class Ggml:
    """The functions of libggml that the hooks call, with their types declared.

    The instances are those that libllama already brought in, found by soname: a wheel holds
    copies under several file names, and hooks in another copy would hook nothing.
    """

    def __init__(self) -> None:
        base, cpu, top = (
            ctypes.CDLL(f"libggml{part}.so.0", mode=os.RTLD_NOLOAD) for part in ("-base", "-cpu", "")
        )

        def declare(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
            function = getattr(library, name)
            function.restype, function.argtypes = result, list(arguments)
            return function

        self.cpu_buffer_type = declare(base, "ggml_backend_cpu_buffer_type", c_void_p)
        self.buffer_from_pointer = declare(
            base, "ggml_backend_cpu_buffer_from_ptr", c_void_p, c_void_p, c_size_t
        )
        self.buffer_init = declare(
            base, "ggml_backend_buffer_init", c_void_p, c_void_p, BufferInterface, c_void_p, c_size_t
        )
        self.buffer_free = declare(base, "ggml_backend_buffer_free", None, c_void_p)
        self.buffer_base = declare(base, "ggml_backend_buffer_get_base", c_void_p, c_void_p)
        self.buffer_size = declare(base, "ggml_backend_buffer_get_size", c_size_t, c_void_p)
        self.buffer_type_name = declare(base, "ggml_backend_buft_name", c_char_p, c_void_p)
        self.bytes_of = declare(base, "ggml_nbytes", c_size_t, c_void_p)
        self.tensor_overhead = declare(base, "ggml_tensor_overhead", c_size_t)
        self.device_by_type = declare(top, "ggml_backend_dev_by_type", c_void_p, c_int)
        self.device_registry = declare(base, "ggml_backend_dev_backend_reg", c_void_p, c_void_p)
        self.registry_function = declare(
            base, "ggml_backend_reg_get_proc_address", c_void_p, c_void_p, c_char_p
        )
        self.graph_plan = declare(cpu, "ggml_graph_plan", Plan, c_void_p, c_int, c_void_p)
        self.graph_compute = declare(cpu, "ggml_graph_compute", c_int, c_void_p, POINTER(Plan))
        # libgomp's, which the library brought in; None where it was built without OpenMP.
        found = hasattr(cpu, "GOMP_parallel")
        self.openmp_parallel = (
            declare(cpu, "GOMP_parallel", None, c_void_p, c_void_p, c_uint, c_uint) if found else None
        )
        self.quantize_q8_0 = declare(cpu, "quantize_row_q8_0", None, c_void_p, c_void_p, c_int64)
        self._base = base
        self._declare = declare

    def extra_buffer_types(self, device: int) -> list[int]:
        """Return the addresses of the CPU's extra buffer types (repacking kernels)."""
        address = self.registry_function(self.device_registry(device), b"ggml_backend_dev_get_extra_bufts")
        if not address:
            return []
        found = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(device)
        types: list[int] = []
        while found and found[len(types)]:
            types.append(int(found[len(types)]))
        return types

    def check(self) -> None:
        """Prove the declarations above on live objects. Raises InternalError when one does not fit."""
        declare, base = self._declare, self._base
        device = self.device_by_type(DEVICE_TYPE_CPU)
        _require(bool(device), "no CPU device")
        registry = Registry.from_address(self.device_registry(device))
        _require(registry.api_version == BACKEND_API_VERSION, f"backend API version {registry.api_version}")

        storage = (ctypes.c_uint8 * 256)()
        address = self.buffer_from_pointer(ctypes.addressof(storage) + 63 & ~63, 64)
        buffer = Buffer.from_address(address)
        _require(buffer.context == self.buffer_base(address), "ggml_backend_buffer.context")
        _require(buffer.size == self.buffer_size(address) == 64, "ggml_backend_buffer.size")
        usage = declare(base, "ggml_backend_buffer_set_usage", None, c_void_p, c_int)
        usage(address, 2)
        _require(buffer.usage == 2, "ggml_backend_buffer.usage")
        self.buffer_free(address)

        init = declare(base, "ggml_init", c_void_p, _InitParams)
        context = init(_InitParams(1 << 20, None, True))
        new = declare(base, "ggml_new_tensor_2d", c_void_p, c_void_p, c_int, c_int64, c_int64)
        add = declare(base, "ggml_add", c_void_p, c_void_p, c_void_p, c_void_p)
        name = declare(base, "ggml_set_name", c_void_p, c_void_p, c_char_p)
        left, right = new(context, 0, 32, 3), new(context, 0, 32, 3)
        name(left, b"left")
        total = add(context, left, right)
        tensor = Tensor.from_address(total)
        _require(
            list(tensor.ne) == [32, 3, 1, 1] and list(tensor.nb) == [4, 128, 384, 384], "ggml_tensor.ne/nb"
        )
        _require(list(tensor.src[:3]) == [left, right, None], "ggml_tensor.src")
        _require(Tensor.from_address(left).name == b"left", "ggml_tensor.name")
        overhead = self.tensor_overhead() - ctypes.sizeof(Tensor)
        _require(0 < overhead <= 64, "size of ggml_tensor")  # what is left is sizeof(ggml_object)

        operation = declare(base, "ggml_op_name", c_char_p, c_int)
        numbers = (OP_MUL_MAT, OP_FLASH_ATTN, *OPS_OF_NO_EFFECT, *OPS_OF_UNKNOWN_EFFECT)
        names = (
            "MUL_MAT FLASH_ATTN_EXT RESHAPE VIEW PERMUTE TRANSPOSE MAP_CUSTOM1 MAP_CUSTOM2 MAP_CUSTOM3 CUSTOM"
        )
        _require([operation(n).decode() for n in numbers] == names.split(), "numbers of operations")
        kind = declare(base, "ggml_type_name", c_char_p, c_int)
        _require([kind(TYPE_F32), kind(TYPE_Q8_0)] == [b"f32", b"q8_0"], "numbers of types")

        graph = declare(base, "ggml_new_graph", c_void_p, c_void_p)(context)
        declare(base, "ggml_build_forward_expand", None, c_void_p, c_void_p)(graph, total)
        view = Graph.from_address(graph)
        count = declare(base, "ggml_graph_n_nodes", c_int, c_void_p)(graph)
        node = declare(base, "ggml_graph_node", c_void_p, c_void_p, c_int)(graph, 0)
        _require(view.n_nodes == count == 1 and view.n_leafs == 2, "ggml_cgraph.n_nodes")
        _require(c_void_p.from_address(view.nodes).value == node == total, "ggml_cgraph.nodes")
        whole = declare(base, "ggml_graph_view", Graph, c_void_p, c_int, c_int)(graph, 0, 1)
        mine = view.slice(0, 1)
        fields = ("n_nodes", "n_leafs", "nodes", "use_counts", "hash_size", "hash_used", "hash_keys", "order")
        _require(all(getattr(whole, f) == getattr(mine, f) for f in fields), "ggml_graph_view")
        plan = self.graph_plan(ctypes.byref(mine), 1, None)
        _require(plan.n_threads == 1 and plan.work_size < 1 << 20 and not plan.use_ref, "ggml_cplan")
        declare(base, "ggml_free", None, c_void_p)(context)


class _InitParams(Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


def _require(fact: bool, what: str) -> None:
    if not fact:
        raise InternalError(
            f"This build of llama.cpp has another layout than expected: {what}.",
            hint=f"Install llama-cpp-python=={PINNED_VERSION} from the project's lock file.",
            code="abi_mismatch",
        )


@functools.cache
def load() -> Ggml:
    """Return the library, checked. Raises InternalError on another version or layout."""
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise NormalWorldError(
            f"llama.cpp cannot be loaded: {type(error).__name__}.",
            hint="Run `make setup`.",
            code="engine_missing",
        ) from error
    _require(llama_cpp.__version__ == PINNED_VERSION, f"llama-cpp-python {llama_cpp.__version__}")
    try:
        ggml = Ggml()
    except (OSError, AttributeError) as error:
        raise InternalError(
            f"This build of llama.cpp lacks a part: {error}.", hint="Run `make setup`.", code="abi_mismatch"
        ) from error
    ggml.check()
    return ggml
