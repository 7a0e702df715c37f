"""What is kept in memory for the requests to come: policy.eviction applied to the models on the shelf.

Nothing is given up while there is room. When the normal world grants less than a request needs,
idle models make way, what costs the requests to come least first. When the engine has nothing to
do, what is held is moved to where it saves most, and the model that is expected next is brought in.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from flexserve.errors import FlexServeError
from flexserve.policy.eviction import InvocationLog, Profile, Speeds, victims
from flexserve.policy.rearrange import Rearrangement, rearrangement
from flexserve.policy.recall import Holding, Kind, plan
from flexserve.policy.transitions import Transitions
from flexserve.protocol.messages import Finished
from flexserve.serving.model_manager import OpenModel, Shelf
from flexserve.trusted.weights.chunks import Weights
from flexserve.trusted.weights.plan import RESIDENT
from flexserve.trusted.weights.residency import Residency
from flexserve.units import MIB

_EXPECTED_RATE = 1.0  # requests per second that a model counts for while it is expected next
_EXPECTED_FOR = 60.0  # seconds that the expectation lasts
_PAUSE = 2.0  # seconds between two looks at what could be moved
_RESTORE_SPEED, _PREFILL_SPEED = 250e6, 50.0  # bytes and tokens per second, until they are measured
_TELLING_BYTES, _TELLING_TOKENS = 32 * MIB, 16  # fewer say nothing about speed
_LATEST = 0.3  # weight of the latest measurement


class Cache:
    """Keeps the invocation log and the measured speeds. Engine thread, but for `spare` and `victims`."""

    def __init__(self, shelf: Shelf, residency: Residency, granule: int) -> None:
        self._shelf, self._residency, self._granule = shelf, residency, granule
        self._log = InvocationLog()
        self._transitions = Transitions()
        self._expected: tuple[str, float] = ("", float("-inf"))  # the next model, and until when
        self._restore_speed = _RESTORE_SPEED
        self._prefill_speeds: dict[str, float] = {}
        self._looked = float("-inf")

    # ---- what requests tell -----------------------------------------------------------------------

    def invoked(self, model: str, prompt: int, hint: str | None) -> None:
        """Note a request with `prompt` tokens to compute; `hint`: the model that its sender asks next.

        Starts to bring the next model in while this one computes.
        """
        now = time.monotonic()
        with self._shelf.lock:  # a recall reads the log from a thread of its own
            self._log.note(model, prompt, now)
        self._transitions.note(model, now)
        following = hint or self._transitions.expected(model)
        if following is not None and following != model:
            self._expected = following, now + _EXPECTED_FOR
            self._prefetch(following)

    def measured(self, model: str, finished: Finished) -> None:
        """Learn speeds from a finished request."""
        timings, usage = finished.timings, finished.usage
        computed = usage.prompt_tokens - usage.cached_tokens
        if computed >= _TELLING_TOKENS and timings.prefill > 0:
            speed, old = computed / timings.prefill * 1000, self._prefill_speeds.get(model)
            self._prefill_speeds[model] = speed if old is None else _LATEST * speed + (1 - _LATEST) * old
        if timings.restored_bytes >= _TELLING_BYTES and timings.restore > 0:
            # Loading goes on while the prompt computes, so this is a little too high; never too low.
            speed = timings.restored_bytes / (timings.restore + timings.prefill) * 1000
            self._restore_speed = _LATEST * speed + (1 - _LATEST) * self._restore_speed

    def restore_seconds(self, size: int) -> float:
        """Return how long bringing `size` bytes of weights in takes."""
        return size / self._restore_speed

    # ---- making way -------------------------------------------------------------------------------

    def victims(self, resident: Mapping[str, int], size: int) -> Sequence[tuple[str, int]]:
        """Return what to take off whose tail so that `size` bytes come free at the least loss."""
        return victims(self._profiles(resident), resident, size, granule=self._granule)

    def spare(self, size: int) -> int:
        """Take `size` bytes from idle models, keeping the grants; return the bytes. Any thread."""
        with self._shelf.lock:
            idle = [h for h in self._shelf.holdings() if not h.running and not self._is_pinned(h)]
            return sum(
                self._shelf.give_up(step.model, step.kind, step.size, keep_grants=True)
                for step in plan(idle, size, victims=self.victims)
            )

    def _is_pinned(self, holding: Holding) -> bool:
        return holding.kind is Kind.WEIGHTS and self._shelf.is_pinned(holding.model)

    # ---- when there is nothing else to do -----------------------------------------------------------

    def rearrange(self) -> float | None:
        """Move what is held to where it saves most; return the seconds until it is worth another look.

        None: there is nothing that could be moved.
        """
        now = time.monotonic()
        with self._shelf.lock:
            entries = {e.name: e for e in self._shelf.entries() if not e.running}
        resident = {name: entry.model.weights.resident for name, entry in entries.items()}
        if len(entries) < 2 or not any(resident.values()):
            return None
        if self._residency.prefetching or now - self._looked < _PAUSE:
            return _PAUSE
        self._looked = now
        found = rearrangement(self._profiles(entries), resident, granule=self._granule)
        if found is None:
            return None
        if found.worthwhile:
            self._move(entries, found)
        return _PAUSE

    def _move(self, entries: dict[str, OpenModel], step: Rearrangement) -> None:
        """Take what models have too much, keeping the grants, and bring in what one of them lacks."""
        with self._shelf.lock:
            for name, size in step.surplus:
                if not entries[name].running:
                    self._shelf.give_up(name, Kind.WEIGHTS, size, keep_grants=True)
        self._bring_in(entries[step.model].model.weights, -(-step.target // self._granule))

    def _prefetch(self, name: str) -> None:
        """Bring all of model `name` in behind what runs, as far as the normal world grants it."""
        try:
            entry = self._shelf.fetch_ready(name)
        except FlexServeError:
            return  # who asks for it will hear
        if entry is not None and not entry.model.weights.whole:
            self._bring_in(entry.model.weights, entry.model.weights.count)

    def _bring_in(self, weights: Weights, granules: int) -> None:
        order = (weights.usual or list(range(weights.count)))[:granules]
        self._residency.prefetch(weights, [g for g in order if weights.states[g] != RESIDENT])

    def _profiles(self, names: Mapping[str, object]) -> list[Profile]:
        now = time.monotonic()
        expected, until = self._expected
        found: list[Profile] = []
        for entry in self._shelf.entries():
            if entry.name not in names:
                continue
            with self._shelf.lock:
                rate, share = self._log.rate(entry.name, now), self._log.share(entry.name, now)
                prompt = self._log.usual_prompt(entry.name, now)
            if entry.name == expected and now < until:
                rate, share = max(rate, _EXPECTED_RATE), 1.0
            speeds = Speeds(self._restore_speed, self._prefill_speeds.get(entry.name, _PREFILL_SPEED))
            pinned, size = self._shelf.is_pinned(entry.name), entry.model.weights.size
            found.append(Profile(entry.name, size, rate, share, prompt, speeds, pinned))
        return found
