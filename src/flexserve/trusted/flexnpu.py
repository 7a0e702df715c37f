"""The NPU, while we have it: a thread that asks for it, feeds it job by job, and lets it go in time.

The normal world lends the NPU and may want it back at any moment, whatever the engine is doing. So one
thread of our own does all that concerns it: between two jobs it looks whether to let go (policy.npu_share),
and an NPU that is idle goes without anybody's help. The engine thread only says that products are coming,
begins work, computes something else meanwhile, and hears whether the work was done. If not, for whatever
reason, it computes the same on the CPU.

A job that was lost may still write to its memory until the NPU is known to be away. That is why results
are taken out of a job's own memory, and why that memory is `occupied` until then.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence

from flexserve.errors import NpuLostError
from flexserve.platforms.ports import Npu, NpuLimits, NpuState, Product
from flexserve.policy.npu_share import NpuShare
from flexserve.policy.offload import Pace

_LOOK = 0.01  # seconds between looks, during a job, whether it has to be given up


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One job of some work: what to compute, and how to take the result out of the job's memory."""

    products: Sequence[Product]
    work: int  # multiplications
    collect: Callable[[], None]


@dataclasses.dataclass(slots=True)
class NpuCounters:
    """What the NPU did since the start."""

    jobs: int = 0  # that ended well
    products: int = 0  # of graphs, wholly computed by it
    switches: int = 0  # times that it came
    held: float = 0.0  # seconds, until it last went
    fallbacks: int = 0  # products that were begun and that the CPU had to do
    lost: int = 0  # jobs that did not end, or not well


class FlexNpu:
    """An Npu in the hands of one engine thread, which alone calls `begin` and `finish`."""

    def __init__(self, npu: Npu, share: NpuShare | None = None, *, patience: float) -> None:
        self._npu, self._share, self._patience = npu, share or NpuShare(), patience
        self.counters = NpuCounters()
        self.pace = Pace()
        self._lock = npu.changed
        self._came: float | None = None  # while it is here, since when
        self._place = 0
        self._steps: Sequence[Step] | None = None  # being computed
        self._done = False  # all of them were
        self._error: BaseException | None = None
        self._unsure = False  # whether a lost job may still write
        self._closing = False
        self._thread = threading.Thread(target=self._keep, name="npu", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give it back and end the thread. Not while work is under way."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        self._thread.join()
        self._npu.release()

    # ---- for the engine thread ------------------------------------------------------------------

    @property
    def limits(self) -> NpuLimits:
        """What fits into a job."""
        return self._npu.limits

    @property
    def state(self) -> NpuState:
        """Whose it is now."""
        return self._npu.state

    def held(self) -> float:
        """Return the seconds that it was here in all."""
        came = self._came
        return self.counters.held + (time.monotonic() - came if came is not None else 0.0)

    @property
    def occupied(self) -> bool:
        """Whether a job may still write to its memory, which must stay as it is."""
        return self._steps is not None or (self._unsure and not self._away())

    def want(self) -> None:
        """Say that there are products to compute, now or in a moment. Returns at once."""
        now = time.monotonic()
        with self._lock:
            self._share.used(now)
            if not self._away() or not self._share.may_ask(now):
                return
            self._unsure = False
        self._npu.ask()

    def ready(self) -> bool:
        """Return whether work may begin."""
        with self._lock:
            here = self._came is not None and self._npu.state is NpuState.HELD
            return here and not self.occupied and time.monotonic() < self._share.leave_at()

    def begin(self, steps: Sequence[Step], place: int) -> None:
        """Have `steps` computed, one job after the other, each described at `place`."""
        with self._lock:
            assert self._steps is None, "work was begun before the last was finished"
            self._steps, self._place, self._done, self._error = steps, place, False, None
            self._lock.notify_all()

    def busy(self) -> bool:
        """Return whether the work that was begun is still under way."""
        return self._steps is not None

    def finish(self) -> bool:
        """Wait until the work is over; return whether all of it was computed.

        Bounded: by the patience for one job. Raises what `collect` or a bug raised.
        """
        with self._lock:
            self._lock.wait_for(lambda: self._steps is None)
            if self._error is not None:
                raise self._error
            return self._done

    # ---- the thread -----------------------------------------------------------------------------

    def _away(self) -> bool:
        return self._npu.state in (NpuState.AWAY, NpuState.REFUSED)

    def _keep(self) -> None:
        while True:
            with self._lock:
                self._note()
                if self._closing:
                    return
                steps = self._steps
                if steps is None and not self._must_go():
                    self._lock.wait(self._until_leaving())
                    continue
            if steps is None:
                self._let_go()
            else:
                self._compute(steps)

    def _note(self) -> None:
        """Follow the NPU's state. Under the lock."""
        now, held = time.monotonic(), self._npu.state is NpuState.HELD
        if held and self._came is None:
            self._came = now
            self.counters.switches += 1
            self._share.came(now)
        elif not held and self._came is not None:
            self.counters.held += now - self._came
            self._came = None
            self._share.left(now)
        deadline = self._npu.wanted_back
        if held and deadline is not None:
            self._share.wanted_back(now, deadline)

    def _must_go(self) -> bool:
        left = self._until_leaving()
        return left is not None and left <= 0

    def _until_leaving(self) -> float | None:
        """Return the seconds until it has to go, if it is here or on its way."""
        if self._came is None and self._npu.state is not NpuState.COMING:
            return None
        return self._share.leave_at() - time.monotonic()

    def _let_go(self) -> None:
        self._npu.release()
        with self._lock:
            self._note()

    def _compute(self, steps: Sequence[Step]) -> None:
        done, error = False, None
        try:
            done = all(self._do(step) for step in steps)
        except NpuLostError:
            self._lose()
        except BaseException as problem:  # raised again by `finish`
            error = problem
            self._lose()
        with self._lock:
            self._steps, self._done, self._error = None, done, error
            self._share.used(time.monotonic())
            self._lock.notify_all()

    def _do(self, step: Step) -> bool:
        """Compute one job; False: it is time to let go instead."""
        began = time.monotonic()
        with self._lock:
            self._share.used(began)
            self._note()
            expected = self.pace.expected(step.work) or 0.0
            if self._came is None or self._must_go():
                return False
            if not self._share.fits(began, expected):
                self._share.end_turn(began)
                return False
        self._unsure = True
        self._npu.submit(step.products, self._place)
        while not self._npu.wait(_LOOK):
            if self._give_up(began):
                raise NpuLostError("A job of the NPU did not end.")
        self._unsure = False
        self.pace.note(step.work, time.monotonic() - began)
        step.collect()
        self.counters.jobs += 1
        return True

    def _give_up(self, began: float) -> bool:
        now = time.monotonic()
        with self._lock:
            self._note()
            abort = self._share.abort_at()
        return now > began + self._patience or (abort is not None and now > abort)

    def _lose(self) -> None:
        given_back = self._share.abort_at() is not None
        self._let_go()
        if not given_back:
            self.counters.lost += 1
            with self._lock:
                self._share.failed(time.monotonic())
