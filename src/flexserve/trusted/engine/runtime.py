"""The engine's process-wide part: the library, its hooks, its scratch, its silence."""

from __future__ import annotations

import ctypes
import hashlib
import platform

from flexserve.errors import InternalError
from flexserve.policy.offload import LEAST_ROWS
from flexserve.trusted.engine import abi, ggml
from flexserve.trusted.engine.hooks import Hooks
from flexserve.trusted.engine.library import lib
from flexserve.trusted.engine.offload import GraphOffload, Offload, Resting
from flexserve.trusted.engine.team import Team
from flexserve.trusted.flexnpu import FlexNpu
from flexserve.trusted.heartbeat import Heartbeat
from flexserve.trusted.memory.flexmem import FlexMem
from flexserve.units import GIB, align_up

_WORK_ADDRESSES = 4 * GIB  # reserved addresses for ggml's work area; memory comes with need


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _silent(_level: int, _text: bytes, _data: int) -> None:
    """Drop llama.cpp's log: it names tensors and metadata of private models, and tokens when it fails."""


class Engine:
    """llama.cpp with all its memory in Flex-Mem. One per process; used from one thread.

    Raises InternalError (code "abi_mismatch") when the library is not the pinned one.
    """

    def __init__(
        self,
        flexmem: FlexMem,
        threads: int,
        heartbeat: Heartbeat | None = None,
        *,
        adapt: bool = False,
        npu: FlexNpu | None = None,
    ) -> None:
        """`threads` compute; where they `adapt`, at most so many, as others leave them cores.

        Each slice of work that is done is a beat of `heartbeat`. `npu` computes large products.
        """
        self.ggml = ggml.load()
        self.flexmem = flexmem
        self.threads = threads
        self.team = Team(self.ggml, threads, adapt=adapt)
        self.hooks = Hooks(self.ggml, flexmem)
        self._work = flexmem.reserve(_WORK_ADDRESSES)
        self._offload: Offload | None = None
        self.heartbeat = heartbeat or Heartbeat()
        lib.llama_log_set(_silent, None)
        lib.llama_backend_init()
        self.use_npu(npu)

    @property
    def build(self) -> str:
        """One line naming the llama.cpp build and the CPU features that it uses."""
        features = lib.llama_print_system_info().decode().strip()
        return f"llama-cpp-python {abi.PINNED_VERSION} ({platform.machine()}; {features})"

    @property
    def identity(self) -> str:
        """What a record of a model's abilities depends on: library version and CPU features."""
        features = self.build.split("|", 1)[0].split(":", 1)[-1] + self.build.partition("|")[2]
        return hashlib.sha256(f"{abi.PINNED_VERSION}\n{platform.machine()}\n{features}".encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """What an image depends on: library version, CPU features, buffer types, chunk."""
        types = [
            self.ggml.buffer_type_name(address).decode()
            for address in self.ggml.extra_buffer_types(self.ggml.device_by_type(abi.DEVICE_TYPE_CPU))
        ]
        # The number of threads is part of the system information, and no image depends on it.
        features = self.build.split("|", 1)[0].split(":", 1)[-1] + self.build.partition("|")[2]
        text = "\n".join([abi.PINNED_VERSION, platform.machine(), features, *types, str(self.flexmem.chunk)])
        return hashlib.sha256(text.encode()).hexdigest()

    def use_npu(self, npu: FlexNpu | None) -> None:
        """Have large products computed by `npu` from now on; None: by the CPU. Not while a graph computes.

        Models that are to profit from it are opened after this.
        """
        if self._offload is not None:
            self.flexmem.report_returned(self._offload.close())
        self._offload = Offload(self.ggml, self.flexmem, npu) if npu is not None else None

    @property
    def keeps_layout(self) -> bool:
        """Whether weights stay as the file has them, which is how the NPU reads them."""
        return self._offload is not None

    def prepare(self, graph: abi.Graph, tokens: int, resting: Resting) -> GraphOffload | None:
        """Have work area for `graph`, of `tokens`, and all of its slices. Raises GrantRefusedError.

        Returns what computes it with the NPU's help, if there is an NPU and it is worth it; in `resting`
        it waits for that.

        Not left to `compute`: a slice that waits for a grant would keep a recall waiting, and the
        normal world grants nothing while it waits for a recall.
        """
        plan = self.ggml.graph_plan(ctypes.byref(graph), self.threads, None)
        if not self._has_work(plan.work_size):
            self._grow_work(plan.work_size)
        if self._offload is None or tokens < LEAST_ROWS:
            return None
        return self._offload.follow(graph, resting)

    def compute(self, graph: abi.Graph) -> None:
        """Compute a graph (slice) that was prepared and whose memory is all there."""
        for part, threads in self.team.parts(graph):
            self._compute(part, threads)

    def _compute(self, graph: abi.Graph, threads: int) -> None:
        plan = self.ggml.graph_plan(ctypes.byref(graph), threads, None)
        if not self._has_work(plan.work_size):
            raise InternalError("A slice of a graph needs more work area than the graph.")
        plan.work_data = self._work.base
        with self.team.computing(plan.n_threads):
            status = self.ggml.graph_compute(ctypes.byref(graph), ctypes.byref(plan))
        if status != abi.STATUS_SUCCESS:
            raise InternalError(f"llama.cpp failed to compute a graph (status {status}).")

    def release_work(self, *, keep_grants: bool = False) -> int:
        """Give the work area up, and that of the NPU; return the bytes. Not while a graph computes."""
        give_up = self.flexmem.recycle_all if keep_grants else self.flexmem.release_all
        jobs = self._offload.release(keep_grants=keep_grants) if self._offload is not None else 0
        return give_up(self._work) + jobs

    @property
    def work_committed(self) -> int:
        """Bytes of the work areas in memory."""
        return self.flexmem.committed(self._work) + (
            self._offload.memory.committed if self._offload is not None else 0
        )

    def _has_work(self, size: int) -> bool:
        """Return whether the first `size` bytes of the work area have memory; it grows at its end."""
        return size == 0 or (size <= self._work.size and self.flexmem.holds(self._work, size - 1))

    def _grow_work(self, size: int) -> None:
        size = align_up(size, self.flexmem.chunk)
        if size > self._work.size:
            raise InternalError(f"llama.cpp asks for a work area of {size} bytes.")
        have = self.flexmem.committed(self._work)
        self.flexmem.commit(self._work, have, size - have)
        # Touched here: products with experts write into a part of it that is the expert's, and by the
        # order in which its pages are wanted the OS would learn which experts a prompt is routed to.
        ctypes.memset(self._work.base + have, 0, size - have)
