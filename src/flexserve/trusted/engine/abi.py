"""The part of ggml's ABI that the hooks touch: structs, callbacks and numbers.

llama.cpp offers no stable interface for what we need: which memory a buffer lives in, and when
a graph computes. Both are reached through structs of function pointers
(`ggml-backend-impl.h`, `ggml.h`, `ggml-impl.h`, `ggml-cpu.h` of the pinned version). Their
layout is declared here once; `trusted.engine.ggml` proves at start that it is the library's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Structure, c_bool, c_char, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p
from typing import Any

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
