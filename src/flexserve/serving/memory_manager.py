"""Secure memory shared out: granted by the OS, evicted from idle models, given back on recall.

Nothing is given up while there is room. When the normal world grants less than a request needs, idle
models make way, what costs the requests to come least first. When the engine has nothing to do, what is
held is moved to where it saves most, and models that are probably asked next come back. A recall is
carried out step by step, and reported by what the OS really got.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from flexserve.errors import FlexServeError, GrantRefusedError
from flexserve.policy import recall
from flexserve.policy.eviction import Profile
from flexserve.policy.eviction_policy import EvictionPolicy
from flexserve.policy.rearrange import Rearrangement
from flexserve.policy.recall import Holding, Part, Step, Victims
from flexserve.policy.rewarm import Candidate
from flexserve.protocol.answers import Finished
from flexserve.protocol.memory import Recall, Recalled
from flexserve.protocol.trusted_app import IdleKv, Kind, ModelMemory, TrustedApp
from flexserve.serving.model_manager import ModelManager
from flexserve.serving.rewarming import AskSpare, Rewarmer
from flexserve.units import format_size

R = TypeVar("R")

_PAUSE = 2.0  # seconds between two looks at what could be moved or brought back
_LOADING = 0.1  # seconds between two looks at whether a piece has come back
_QUIET = 0.25  # seconds after any request within which a client's next one often comes: none is kept waiting
_SEAL_AFTER = 1.0  # seconds after its last use that KV is sealed, when there is nothing else to do


class MemoryManager:
    """Grants or evicts. Methods belong to the engine thread, but for `answer`, `pin` and `rewarmed`.

    `spare` as `Rewarmer` has it; None: nothing is brought back without a request.
    `_lock` guards the policy, and keeps two plans from being carried out at once.
    """

    def __init__(
        self,
        app: TrustedApp,
        models: ModelManager,
        policy: EvictionPolicy | None = None,
        spare: AskSpare | None = None,
    ) -> None:
        self._app, self._models = app, models
        self._policy = policy or EvictionPolicy(app.chunk)
        self._rewarmer = Rewarmer(app, spare)
        self._pinned: frozenset[str] = frozenset()
        self._lock = threading.Lock()
        self._looked = float("-inf")

    # ---- what requests tell -----------------------------------------------------------------------

    def invoked(self, model: str, prompt: int, hint: str | None) -> None:
        """Record a request with `prompt` tokens to compute; `hint`: the model that its sender asks next.

        Starts to bring the next model in while this one computes.
        """
        kv = self._app.kv_status()
        with self._lock:
            following = self._policy.invoked(model, prompt, hint, time.monotonic())
            self._policy.resumed(model, kv.resumed_tokens, kv.resumed_ms / 1000)
        if following is not None:
            self.prefetch(following)

    def turn(self, model: str) -> None:
        """Record that `model` computes: nothing is brought back unasked beside it."""
        with self._lock:
            self._rewarmer.turn(model)

    def measured(self, model: str, finished: Finished) -> None:
        """Learn speeds from a finished request."""
        timings, usage = finished.timings, finished.usage
        prefill = timings.prefill / 1000
        with self._lock:
            self._policy.computed(model, usage.prompt_tokens - usage.cached_tokens, prefill)
            self._policy.continued(one=usage.cached_tokens > 0)
            self._policy.restored(timings.restored_bytes, timings.restore / 1000, prefill)

    def restore_seconds(self, model: str) -> float:
        """Return how long bringing in what `model` lacks takes."""
        return self._policy.restore_seconds(self._app.missing(model).size)

    # ---- grant or evict -----------------------------------------------------------------------------

    # What is provided for a model does not take from its own scratch and weights: it is about to use them.

    def provide(self, model: str, size: int) -> None:
        """See to it that `size` bytes are granted for `model`, as far as the OS and idle models have them."""
        self.make_way(model, size - self._app.grant(size, 0))

    def provide_weights(self, model: str, *, whole: bool = False) -> None:
        """See to it that what `model` lacks can come in.

        Idle models make way for what its graphs read; `whole`: for all of it.
        """
        missing = self._app.missing(model)
        if missing.size:
            have = self._app.grant_missing(model)
            self.make_way(model, (missing.size if whole else missing.needed) - have)

    def with_memory(self, model: str, work: Callable[[], R]) -> R:
        """Do `work` for `model`; when memory is refused to it and idle models have some, do it again."""
        while True:
            try:
                return work()
            except GrantRefusedError as refused:
                if not self.make_way(model, refused.missing):
                    raise

    def make_way(self, model: str, size: int) -> int:
        """Take `size` bytes for `model` from what is idle, keeping the grants; return the bytes.

        A `size` of 0 or less takes nothing.
        """
        return self._take(size, model, lambda it: it.model == model and it.kind is not Kind.KV)

    def _take(self, size: int, model: str, spared: Callable[[Holding], bool]) -> int:
        """Take `size` bytes for `model` from what is idle and not `spared`; return the bytes."""
        if size <= 0:
            return 0
        with self._lock:
            memory = self._app.memory()
            idle = [
                it
                for it in self._holdings(memory, granted=True)
                if not (it.running or self._is_pinned(it) or spared(it))
            ]
            steps = recall.plan(idle, size, victims=self._victims(memory))
            return sum(self._give_up(step, f"made way for {model}") for step in steps)

    def _give_up(self, step: Step, why: str) -> int:
        """Evict what `step` says, for others of us; return the bytes."""
        size = self._app.evict(step.model, step.kind, step.size, keep=True, sequence=step.sequence)
        if step.kind is Kind.WEIGHTS and size:
            self._models.went(step.model, why)
        return size

    # ---- recall: from a thread of its own -----------------------------------------------------------

    def pin(self, names: Iterable[str]) -> None:
        """Keep the weights of these models, and of no others, as long as anything else can be given up."""
        self._pinned = frozenset(names)

    def answer(self, message: Recall) -> Recalled:
        """Give memory back as asked and report it. Never waits on inference beyond one slice."""
        began = time.monotonic()
        deadline = began + message.deadline / 1000
        before = self._app.pool().resident
        done: dict[Step, int] = {}  # bytes that the OS got by each
        self._app.stop_loading()  # memory is wanted elsewhere
        with self._lock:
            if any(step.kind is Kind.KV for step in self._plan(message.demand)):
                self._app.seal_before(deadline)
            returned = self._app.return_unused()  # first what nobody uses: it may have memory that lies ready
            after = self._app.pool().resident
            # One step at a time, since only the OS knows what a step brings: KV and scratch may
            # be committed without having pages, and the demand is for pages.
            while step := self._next_step(message, before - after, done):
                returned += self._app.evict(
                    *(step.model, step.kind, step.size),
                    keep=False,
                    until=deadline,
                    sequence=step.sequence,
                )
                now = self._app.pool().resident
                done[step] = after - now
                after = now
                if step.kind is Kind.WEIGHTS and done[step]:
                    why = f"recalled: {message.reason}" if message.reason else "recalled"
                    self._models.went(step.model, why)
            if any(step.unasked and freed for step, freed in done.items()):
                self._rewarmer.undone(time.monotonic())
            kept = recall.protected(self._holdings(self._app.memory()))
        return Recalled(
            serial=message.serial,
            returned=returned,
            os_before=before,
            os_after=after,
            elapsed=(time.monotonic() - began) * 1000,
            protected=kept,
            plan=[
                f"{step.kind.name.lower()} of {step.model}: {format_size(freed)}"
                for step, freed in done.items()
            ],
        )

    def _next_step(self, message: Recall, freed: int, done: dict[Step, int]) -> Step | None:
        """Return what to give up next, None when the demand is met or every holding had its turn."""
        missing = None if message.demand is None else message.demand - freed
        tried = {_target(step) for step in done}
        steps = [step for step in self._plan(missing) if not self._spared(step, message)]
        return next((step for step in steps if _target(step) not in tried), None)

    def _plan(self, demand: int | None) -> list[Step]:
        memory = self._app.memory()
        return recall.plan(self._holdings(memory), demand, victims=self._victims(memory))

    def _spared(self, step: Step, message: Recall) -> bool:
        """Return whether `message` is not worth this step."""
        definite = message.demand is not None and not message.gentle
        pinned = step.kind is Kind.WEIGHTS and step.model in self._pinned
        return (message.gentle and step.between_slices) or (pinned and not definite)

    # ---- when there is nothing else to do -----------------------------------------------------------

    def tidy(self) -> float | None:
        """Seal idle KV, give back what was kept long enough, move what lies with the wrong models.

        One thing at a time, so that a request need not wait. Returns the seconds until there is more to
        do; None: there is nothing.
        """
        waits: list[float | None] = []
        for kv in self._app.idle_kv():
            if not kv.worth_sealing:
                continue
            since = max(kv.last_used + _SEAL_AFTER, self._models.last_ended() + _QUIET)
            wait = min(since, self._models.due(kv.model)) - time.monotonic()  # it goes back sealed
            if wait <= 0:
                self._seal(kv)
                return 0
            waits.append(wait)
        waits.append(self._models.tidy())
        waits += [_LOADING] if self._app.loading else self._look_around()
        return min((wait for wait in waits if wait is not None), default=None)

    def _seal(self, kv: IdleKv) -> None:
        """Seal idle KV, with room for its plaintext from the OS, or from what else is idle.

        The next request will need the KV with the model's weights, so neither makes way.
        """
        needed = {Kind.KV: (kv.model, kv.sequence), Kind.WEIGHTS: (kv.model, None)}
        size = self._app.sealing_size(kv.model, kv.sequence)
        have = self._app.grant(size, 0)
        self._take(size - have, kv.model, lambda it: it.part == needed.get(it.kind))
        self._app.seal(kv.model, kv.sequence)

    def _look_around(self) -> list[float | None]:
        """Do what can be done while nothing is loaded; return the seconds until there may be more."""
        wait = self._rearrange()
        return [wait] if wait == 0 else [wait, self._return_unused(), self._rewarm()]

    def _rearrange(self) -> float | None:
        """Move what is held to where it saves most; return the seconds until it is worth another look.

        0: something moves. None: there is nothing that could be moved.
        """
        now = time.monotonic()
        idle = [memory for memory in self._app.memory() if not memory.running]
        resident = {memory.name: memory.weights for memory in idle}
        if len(idle) < 2 or not any(resident.values()):
            return None
        if now - self._looked < _PAUSE:
            return _PAUSE
        self._looked = now
        with self._lock:
            found = self._policy.rearrangement(self._profiles(idle), resident)
            if found is not None and found.worthwhile:
                self._move(found)
                return 0
        return _PAUSE if found is not None else None

    def _return_unused(self) -> float | None:
        """Give the OS what was granted for graphs that ended a while ago; return the seconds until then.

        None: there is nothing. Until then the next request finds it lying ready.
        """
        if not self._app.unused():
            return None
        wait = self._models.last_ended() + _PAUSE - time.monotonic()
        if wait > 0:
            return wait
        self._app.report_returned(self._app.return_unused())
        return None

    def _move(self, step: Rearrangement) -> None:
        """Take what models have too much, keeping the grants, and bring in what one of them lacks."""
        for name, size in step.surplus:
            self._models.went(name, f"made way for {step.model}, which is asked more")
            self._app.evict(name, Kind.WEIGHTS, size, keep=True)
        self._load(step.model, step.target)

    def _rewarm(self) -> float | None:
        """Bring back what requests will probably ask for, where nobody needs the memory.

        Returns the seconds until it is worth another look; None: everything chosen is there.
        """
        if not self._rewarmer.enabled:
            return None
        now = time.monotonic()
        memory = {it.name: it for it in self._app.memory() if not it.running}
        with self._lock:
            step = self._policy.rewarming([self._candidate(it, now) for it in memory.values()])
        if step is None:
            return None
        return _LOADING if self._rewarmer.bring_back(step, memory[step.model], now) else _PAUSE

    def _candidate(self, it: ModelMemory, now: float) -> Candidate:
        (profile,) = self._profiles([it])
        kept = self._models.is_kept(it.name, now)
        return Candidate(profile, it.weights, kept, self._policy.expects(it.name, now))

    def rewarmed(self) -> Mapping[str, tuple[int, str]]:
        """Return (bytes, why) of each model that came back without a request. Any thread."""
        return self._rewarmer.reasons(self._app.memory())

    def _load(self, model: str, size: int | None) -> None:
        self._rewarmer.others_load()
        self._app.load(model, size)

    def prefetch(self, model: str) -> None:
        """Bring all of `model` in behind what runs, as far as the normal world grants it."""
        try:
            if not self._app.opens_at_once(model):
                return
            self._models.fetch(model)
        except FlexServeError:
            return  # who asks for it will hear
        if self._app.missing(model).size:
            self._load(model, None)

    # ---- what the policy goes by ----------------------------------------------------------------------

    def _is_pinned(self, holding: Holding) -> bool:
        return holding.kind is Kind.WEIGHTS and holding.model in self._pinned

    def _holdings(self, memory: Sequence[ModelMemory], *, granted: bool = False) -> list[Holding]:
        """Return what models hold. Of idle KV what has pages, which the OS gets, or all that is `granted`."""
        found: list[Holding] = []
        for it in memory:
            sizes = [
                (Kind.SCRATCH, it.scratch, it.running),
                (Kind.KV, it.used_kv, True),
                (Kind.WEIGHTS, it.weights, it.running),
            ]
            last_used = self._models.last_used(it.name)
            unasked = 0 if it.name in self._pinned else self._rewarmer.unasked(it)  # a person asked for those
            found += [
                Holding(
                    *(it.name, kind, size, busy, last_used),
                    unasked=unasked if kind is Kind.WEIGHTS else 0,
                )
                for kind, size, busy in sizes
                if size
            ]
        found += [
            Holding(
                *(kv.model, Kind.KV, kv.size if granted else max(kv.touched, self._app.chunk)),
                running=False,
                last_used=kv.last_used,
                sequence=kv.sequence,
            )
            for kv in self._app.idle_kv()
        ]
        return found

    def _victims(self, memory: Sequence[ModelMemory]) -> Victims:
        def victims(resident: Mapping[Part, int], size: int) -> Sequence[tuple[Part, int]]:
            profiles = self._profiles([it for it in memory if (it.name, None) in resident])
            conversations = self._policy.conversations(self._app.idle_kv(), time.monotonic())
            return self._policy.victims(resident, size, profiles, conversations)

        return victims

    def _profiles(self, memory: Sequence[ModelMemory]) -> list[Profile]:
        now = time.monotonic()
        return [self._policy.profile(it.name, it.size, now, pinned=it.name in self._pinned) for it in memory]


def _target(step: Step) -> tuple[str, Kind, int | None, bool]:
    """Return what a step takes something of."""
    return step.model, step.kind, step.sequence, step.unasked
