"""libggml: the functions that the hooks call, and the guard that refuses a build they do not fit.

`check()` proves at start, on live objects and through the library's own accessors, that the declarations of
`trusted.engine.abi` fit the library that was loaded. A mismatch is refused before any model is opened.
"""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import POINTER, Structure, c_bool, c_char_p, c_int, c_int64, c_size_t, c_uint, c_void_p
from typing import Any

from flexserve.errors import InternalError, NormalWorldError
from flexserve.trusted.engine import abi


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
            base, "ggml_backend_buffer_init", c_void_p, c_void_p, abi.BufferInterface, c_void_p, c_size_t
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
        self.graph_plan = declare(cpu, "ggml_graph_plan", abi.Plan, c_void_p, c_int, c_void_p)
        self.graph_compute = declare(cpu, "ggml_graph_compute", c_int, c_void_p, POINTER(abi.Plan))
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
        device = self.device_by_type(abi.DEVICE_TYPE_CPU)
        _require(bool(device), "no CPU device")
        registry = abi.Registry.from_address(self.device_registry(device))
        _require(
            registry.api_version == abi.BACKEND_API_VERSION, f"backend API version {registry.api_version}"
        )

        storage = (ctypes.c_uint8 * 256)()
        address = self.buffer_from_pointer(ctypes.addressof(storage) + 63 & ~63, 64)
        buffer = abi.Buffer.from_address(address)
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
        tensor = abi.Tensor.from_address(total)
        _require(
            list(tensor.ne) == [32, 3, 1, 1] and list(tensor.nb) == [4, 128, 384, 384], "ggml_tensor.ne/nb"
        )
        _require(list(tensor.src[:3]) == [left, right, None], "ggml_tensor.src")
        _require(abi.Tensor.from_address(left).name == b"left", "ggml_tensor.name")
        overhead = self.tensor_overhead() - ctypes.sizeof(abi.Tensor)
        _require(0 < overhead <= 64, "size of ggml_tensor")  # what is left is sizeof(ggml_object)

        operation = declare(base, "ggml_op_name", c_char_p, c_int)
        numbers = (abi.OP_MUL_MAT, abi.OP_FLASH_ATTN, *abi.OPS_OF_NO_EFFECT, *abi.OPS_OF_UNKNOWN_EFFECT)
        names = (
            "MUL_MAT FLASH_ATTN_EXT RESHAPE VIEW PERMUTE TRANSPOSE MAP_CUSTOM1 MAP_CUSTOM2 MAP_CUSTOM3 CUSTOM"
        )
        _require([operation(n).decode() for n in numbers] == names.split(), "numbers of operations")
        kind = declare(base, "ggml_type_name", c_char_p, c_int)
        _require([kind(abi.TYPE_F32), kind(abi.TYPE_Q8_0)] == [b"f32", b"q8_0"], "numbers of types")

        graph = declare(base, "ggml_new_graph", c_void_p, c_void_p)(context)
        declare(base, "ggml_build_forward_expand", None, c_void_p, c_void_p)(graph, total)
        view = abi.Graph.from_address(graph)
        count = declare(base, "ggml_graph_n_nodes", c_int, c_void_p)(graph)
        node = declare(base, "ggml_graph_node", c_void_p, c_void_p, c_int)(graph, 0)
        _require(view.n_nodes == count == 1 and view.n_leafs == 2, "ggml_cgraph.n_nodes")
        _require(c_void_p.from_address(view.nodes).value == node == total, "ggml_cgraph.nodes")
        whole = declare(base, "ggml_graph_view", abi.Graph, c_void_p, c_int, c_int)(graph, 0, 1)
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
            hint=f"Install llama-cpp-python=={abi.PINNED_VERSION} from the project's lock file.",
            code="abi_mismatch",
        )


@functools.cache
def load() -> Ggml:
    """Return the library, checked. Raises InternalError on another version or layout."""
    try:
        from flexserve.trusted.engine import library
    except (ImportError, OSError, RuntimeError) as error:
        raise NormalWorldError(
            f"llama.cpp cannot be loaded: {type(error).__name__}.",
            hint="Run `make setup`.",
            code="engine_missing",
        ) from error
    version = library.VERSION or "of unknown version"
    _require(version == abi.PINNED_VERSION, f"llama-cpp-python {version}")
    try:
        ggml = Ggml()
    except (OSError, AttributeError) as error:
        raise InternalError(
            f"This build of llama.cpp lacks a part: {error}.", hint="Run `make setup`.", code="abi_mismatch"
        ) from error
    ggml.check()
    return ggml
