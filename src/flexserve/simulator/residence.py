"""Who stays in simulated memory: the policies of flexserve.policy on the books of one machine."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterable

from flexserve.policy import eviction as cache
from flexserve.policy import recall
from flexserve.policy.eviction import Profile
from flexserve.policy.eviction_policy import EvictionPolicy
from flexserve.policy.pressure import Holdings, PressurePolicy
from flexserve.policy.recall import Holding
from flexserve.protocol.trusted_app import Kind
from flexserve.simulator.designs import Design, Keeping
from flexserve.simulator.dram import Dram
from flexserve.simulator.machine import SimModel
from flexserve.simulator.weights import SimWeights
from flexserve.units import align_up


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """How models are chosen to be kept: the settings of flexserve.policy.eviction."""

    threshold: float = 0.25  # of all invocations: a model with this share is chosen
    top: int = 3  # models that are chosen when none has it
    window: float = 3600.0  # seconds over which invocations are counted


class Residence:
    """The models of one server in memory. `budget` is how many bytes idle ones may hold."""

    def __init__(
        self,
        design: Design,
        models: Iterable[SimModel],
        *,
        dram: Dram,
        budget: int,
        policy: PressurePolicy,
        choice: Choice,
    ) -> None:
        self.dram, self._budget, self._policy = dram, budget, policy
        self._design = design
        self.weights = {model.name: SimWeights(model, dram) for model in models}
        self._scratch: dict[str, list[int]] = {name: [] for name in self.weights}  # pages of working memory
        self._models = {model.name: model for model in models}
        self._choice = choice
        self.learned = EvictionPolicy(
            dram.chunk, threshold=choice.threshold, top=choice.top, window=choice.window
        )
        self._expected: str | None = None
        self._last_used = dict.fromkeys(self.weights, 0.0)
        self.running: set[str] = set()  # models that requests are using
        self.recalled = 0  # bytes that the normal world asked back and got

    def note(self, model: str, prompt: int, now: float) -> None:
        """Note an invocation, and learn from it."""
        self._expected = self.learned.invoked(model, prompt, None, now)

    def reserve(
        self, model: str, working: int, now: float, *, partly: bool = False
    ) -> tuple[list[int], bool] | None:
        """Take what a request to `model` needs, with `working` bytes for KV cache and activations.

        Returns the chunks to restore, and whether the working memory is new; None when there was
        not enough even after idle models made room. The model is running unless None is returned.
        `partly`: take as many chunks as there is memory for, but for the working memory, which comes first
        and may take the last that a request gets.
        """
        ran = model in self.running
        self.running.add(model)
        weights, scratch = self.weights[model], self._scratch[model]
        absent = weights.absent()
        pages = 0 if scratch else -(-working // self.dram.chunk)
        wanted = len(absent) + pages
        granted = self._make_room(wanted, pages if partly else wanted, now)
        if granted < (pages if partly else wanted):
            self.running = self.running if ran else self.running - {model}
            return None
        taken = absent[: granted - pages]
        weights.take(taken)
        scratch += self.dram.take(pages)
        self.check()
        return taken, pages > 0

    def _make_room(self, wanted: int, minimum: int, now: float) -> int:
        """Return how many of `wanted` chunks may be taken, at least `minimum` or 0; idle models make way."""
        granted = self._granted(wanted, minimum, now)
        if granted < wanted:
            missing = (wanted - granted) * self.dram.chunk
            if minimum == wanted:
                missing = wanted * self.dram.chunk + self._policy.limits.emergency - self.dram.available
            returned = self._give_back(missing, now)
            if minimum == wanted:
                return self._granted(wanted, minimum, now)
            granted += min(returned // self.dram.chunk, wanted - granted)  # what is kept keeps its grant
        return granted

    def pressed(self, now: float) -> int:
        """Look at memory and give back what the pressure policy asks for; return the bytes."""
        decision = self._policy.recall(self.dram.sample(), self._held(), now=now)
        if decision is None:
            return 0
        returned = self._give_back(decision.size, now)
        self._policy.recalled(asked=decision.size, returned=returned, now=now, gentle=decision.gentle)
        self.recalled += returned
        self.check()
        return returned

    def rest(self, model: str, now: float) -> int:
        """A model's last request ended; return the bytes that go so that idle ones keep to the budget."""
        self.running.discard(model)
        self._last_used[model] = now
        over = self._idle_bytes() - self._budget
        returned = self._give_back(over, now, kinds=(Kind.WEIGHTS,))
        returned += self._give_back(over - returned, now)
        self.check()
        return returned

    def expire(self, now: float, seconds: float) -> None:
        """Give back the working memory of models that no request has used for so many seconds."""
        for model, last in self._last_used.items():
            if model not in self.running and self._scratch[model] and now >= last + seconds:
                self._drop_scratch(model)

    def wanted(self, awaited: Collection[str], now: float) -> tuple[str, int] | None:
        """Return (model, chunk) that is best restored next, and take memory for it.

        None when everything idle is at its best, or memory is short. The expected next model
        comes first; what another model holds beyond its target makes room. What requests wait for
        (`awaited`) is left alone: they will restore it themselves.
        """
        chunk = self.dram.chunk
        idle = self.weights.keys() - self.running
        room = self._budget - sum(len(self._scratch[name]) for name in idle) * chunk
        room -= sum(self.weights[name].held for name in idle & set(awaited))
        goals = cache.targets(
            self._profiles(now, idle - set(awaited)),
            room,
            chunk=chunk,
            threshold=self._choice.threshold,
            top=self._choice.top,
        )
        short = {name: align_up(goal, chunk) - self.weights[name].held for name, goal in goals.items()}
        lacking = [name for name, size in short.items() if size > 0]
        if not lacking:
            return None
        model = max(lacking, key=lambda name: (name == self._expected, short[name], name))
        if self._idle_bytes() + chunk <= self._budget:
            if not self._granted(1, 0, now):
                return None
        else:  # one chunk for another: that takes no grant
            surplus = min(short, key=lambda name: (short[name], name))
            if short[surplus] >= 0 or self.dram.available < 0 or not self.weights[surplus].drop(chunk):
                return None
        first = self.weights[model].absent()[0]
        self.weights[model].take([first])
        self.check()
        return model, first

    def check(self) -> None:
        """Assert that memory is conserved and accounted for, and that idle models keep to the budget."""
        self.dram.check()
        held = sum(weights.held for weights in self.weights.values())
        scratch = sum(len(pages) for pages in self._scratch.values()) * self.dram.chunk
        assert held + scratch == self.dram.secure, "secure memory that no model holds"
        assert self._idle_bytes() <= self._budget, "idle models hold more than the budget"

    def _granted(self, count: int, minimum: int, now: float) -> int:
        """Return how many of `count` chunks the policy grants, and there is memory for."""
        sample, chunk = self.dram.sample(), self.dram.chunk
        decision = self._policy.grant(
            sample, self._held(), size=count * chunk, minimum=minimum * chunk, now=now
        )
        granted = min(decision.size, max(0, self.dram.available)) // chunk
        return granted if granted >= minimum else 0

    def _held(self) -> Holdings:
        return Holdings(granted=self.dram.secure, used=self.dram.secure)

    def _give_back(self, size: int, now: float, kinds: Collection[Kind] = tuple(Kind)) -> int:
        """Give up about `size` bytes of idle models as flexserve.policy.recall plans; return the bytes."""
        if size <= 0:
            return 0
        holdings = [holding for holding in self._holdings() if holding.kind in kinds]
        victims = None
        if self._design.keeping is Keeping.MOST_VALUABLE:
            profiles = self._profiles(now, self.weights)
            victims = functools.partial(self.learned.victims, profiles=profiles, conversations=())
        returned = 0
        for step in recall.plan(holdings, size, victims=victims):
            if step.kind is Kind.SCRATCH:
                returned += self._drop_scratch(step.model)
            elif not step.between_slices:
                returned += self.weights[step.model].drop(step.size)
        return returned

    def _holdings(self) -> list[Holding]:
        found = []
        for model, weights in self.weights.items():
            running, last = model in self.running, self._last_used[model]
            scratch = len(self._scratch[model]) * self.dram.chunk
            found.append(Holding(model, Kind.SCRATCH, scratch, running, last))
            found.append(Holding(model, Kind.WEIGHTS, weights.resident, running, last))
        return found

    def _drop_scratch(self, model: str) -> int:
        pages, self._scratch[model] = self._scratch[model], []
        self.dram.give(pages)
        return len(pages) * self.dram.chunk

    def _idle_bytes(self) -> int:
        idle = self.weights.keys() - self.running
        scratch = sum(len(self._scratch[model]) for model in idle) * self.dram.chunk
        return scratch + sum(self.weights[model].held for model in idle)

    def _profiles(self, now: float, models: Collection[str]) -> list[Profile]:
        return [self.learned.profile(name, self._models[name].weights, now, pinned=False) for name in models]
