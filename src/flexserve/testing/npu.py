"""An NPU in numpy, NPUs that misbehave, and the contract of the Npu port.

class TestMyNpu(NpuContract):
    def rig(self) -> AbstractContextManager[NpuRig]:
        return my_rig()
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from flexserve.errors import InternalError, NpuLostError
from flexserve.platforms.linux import mman
from flexserve.platforms.ports import NpuLimits, NpuState, Product
from flexserve.testing import q8
from flexserve.units import MIB

_PATIENCE = 20.0  # seconds: a hang is a failure


def compute(product: Product) -> None:
    """Compute a product, on memory of this process, by the book."""
    a, b = (
        q8.read(mman.view(address, (rows - 1) * stride + width), rows, product.depth, stride)
        for address, rows, stride in (
            (product.a, product.rows, product.a_stride),
            (product.b, product.columns, product.b_stride),
        )
        for width in (product.depth // q8.BLOCK * q8.BLOCK_BYTES,)
    )
    length = (product.rows - 1) * product.c_stride + 4 * product.columns
    raw = np.frombuffer(mman.view(product.c, length), np.uint8)
    target = np.lib.stride_tricks.as_strided(
        raw.view(np.float32), (product.rows, product.columns), (product.c_stride, 4)
    )
    target[:] = q8.multiply(a, b)


class FakeNpu:
    """An NPU without a machine. The test plays the normal world: `lend`, `call_back`, `lose`.

    Lends itself when it is asked for, unless not `willing`. Jobs run on a thread, one `delay` each.
    """

    limits = NpuLimits(rows=4096, columns=65536, depth=65536, products=64, reach=64 * MIB, place=mman.PAGE)

    def __init__(self, *, willing: bool = True, delay: float = 0.0) -> None:
        self.willing, self.delay = willing, delay
        self.stuck = False  # jobs begin, and do not end
        self.computed: list[Product] = []
        self._state = NpuState.AWAY
        self._wanted_back: float | None = None
        self.changed = threading.Condition()
        self._job: threading.Thread | None = None
        self._failed = False

    # ---- the normal world

    def lend(self) -> None:
        """Let it go to the secure world."""
        self._become(NpuState.HELD)

    def call_back(self, seconds: float) -> None:
        """Want it back within `seconds`."""
        with self.changed:
            self._wanted_back = time.monotonic() + seconds
            self.changed.notify_all()

    def lose(self) -> None:
        """Take it without asking, as a machine that breaks does."""
        self._leave()

    # ---- the port

    @property
    def state(self) -> NpuState:
        return self._state

    @property
    def wanted_back(self) -> float | None:
        return self._wanted_back if self._state is NpuState.HELD else None

    def ask(self) -> None:
        if self._state is NpuState.AWAY:
            self._become(NpuState.COMING)
            if self.willing:
                self.lend()

    def submit(self, products: Sequence[Product], place: int) -> None:
        check(products, self.limits)
        with self.changed:
            if self._state is not NpuState.HELD:
                raise NpuLostError("The NPU is away (fake).")
            if self._job is not None and not self._failed:
                raise InternalError("The NPU has a job.")
            self._failed = False
            self._job = threading.Thread(target=self._run, args=(list(products), place), daemon=True)
            self._job.start()

    def wait(self, seconds: float) -> bool:
        job = self._job
        if job is None:
            raise InternalError("The NPU has no job.")
        deadline = time.monotonic() + seconds
        while job.is_alive() and not self._failed and time.monotonic() < deadline:
            job.join(min(0.001, seconds))
        if self._failed:
            self._job = None
            raise NpuLostError("The NPU was lost (fake).")
        if job.is_alive():
            return False
        self._job = None
        return True

    def release(self) -> None:
        if self._state in (NpuState.COMING, NpuState.HELD):
            self._leave()

    def _leave(self) -> None:
        self._become(NpuState.LEAVING)
        if self._job is not None:
            self._failed = True
            self._job.join()
        self._become(NpuState.AWAY)

    def _become(self, state: NpuState) -> None:
        with self.changed:
            self._state = state
            self._wanted_back = None
            self.changed.notify_all()

    def _run(self, products: Sequence[Product], place: int) -> None:
        mman.view(place, self.limits.place)[:8] = b"occupied"
        if self.delay or self.stuck:
            with self.changed:
                self.changed.wait_for(
                    lambda: self._state is not NpuState.HELD, None if self.stuck else self.delay
                )
        for product in products:
            if self._state is not NpuState.HELD:
                return
            compute(product)
            self.computed.append(product)


class Troubled(FakeNpu):
    """Has a trouble (a method of FakeNpu, say) just after job number `at` was begun; the first is 1."""

    def __init__(self, *, at: int, trouble: Callable[[FakeNpu], None], delay: float = 0.0) -> None:
        super().__init__(delay=delay)
        self.at, self.trouble = at, trouble
        self.begun = 0

    def submit(self, products: Sequence[Product], place: int) -> None:
        super().submit(products, place)
        self.begun += 1
        if self.begun == self.at:
            self.trouble(self)


def check(products: Sequence[Product], limits: NpuLimits) -> None:
    """Raise InternalError for a job beyond `limits`."""
    fits = 0 < len(products) <= limits.products and all(
        0 < p.rows <= limits.rows and 0 < p.columns <= limits.columns and 0 < p.depth <= limits.depth
        for p in products
    )
    if not fits or any(p.depth % q8.BLOCK for p in products):
        raise InternalError("A job is beyond the NPU's limits.")
