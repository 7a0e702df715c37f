"""Who stays in simulated memory: the policies of flexserve.policy on the books of one machine."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterable, Mapping, Sequence

from flexserve.policy import eviction as cache
from flexserve.policy import recall
from flexserve.policy.eviction import InvocationLog, Profile, Speeds
from flexserve.policy.pressure import Holdings, PressurePolicy
from flexserve.policy.ranking import cheapest
from flexserve.policy.recall import Holding, Part
from flexserve.policy.transitions import Transitions
from flexserve.protocol.trusted_app import Kind
from flexserve.simulator.designs import Costs, Design, Keeping
from flexserve.simulator.dram import Dram
from flexserve.simulator.machine import SimModel
from flexserve.simulator.weights import SimWeights
from flexserve.units import align_up

_SOON = 30.0  # seconds; a model that is expected next counts as one more invocation within this time


class Residence:
    """The models of one server in memory. `budget` is how many bytes idle ones may hold."""

    def __init__(
        self,
        design: Design,
        costs: dict[str, Costs],
        models: Iterable[SimModel],
        *,
        dram: Dram,
        budget: int,
        policy: PressurePolicy,
    ) -> None:
        self.dram, self._budget, self._policy = dram, budget, policy
        self._design, self._costs = design, costs
        self.weights = {model.name: SimWeights(model, dram) for model in models}
        self._scratch: dict[str, list[int]] = {name: [] for name in self.weights}  # pages of working memory
        self._models = {model.name: model for model in models}
        self._log, self._transitions = InvocationLog(), Transitions()
        self._expected: str | None = None
        self._last_used = dict.fromkeys(self.weights, 0.0)
        self.running: set[str] = set()  # models that requests are using
        self.recalled = 0  # bytes that the normal world asked back and got

    def note(self, model: str, prompt: int, now: float) -> None:
        """Note an invocation, and learn from it."""
        self._log.note(model, prompt, now)
        self._transitions.note(model, now)
        self._expected = self._transitions.expected(model)

    def reserve(self, model: str, working: int, now: float) -> tuple[list[int], bool] | None:
        """Take what a request to `model` needs, with `working` bytes for KV cache and activations.

        Returns the chunks to restore, and whether the working memory is new; None when there was
        not enough even after idle models made room. The model is running then.
        """
        ran = model in self.running
        self.running.add(model)
        weights, scratch = self.weights[model], self._scratch[model]
        absent = weights.absent()
        pages = 0 if scratch else -(-working // self.dram.chunk)
        size = (len(absent) + pages) * self.dram.chunk
        if not self._granted(size, now):
            self._give_back(size + self._policy.limits.emergency - self.dram.available, now)
            if not self._granted(size, now):
                self.running = self.running if ran else self.running - {model}
                return None
        weights.take(absent)
        scratch += self.dram.take(pages)
        self.check()
        return absent, pages > 0

    def pressed(self, now: float) -> int:
        """Look at memory and give back what the pressure policy asks for; return the bytes."""
        decision = self._policy.recall(self.dram.sample(), self._held(), now=now)
        if decision is None:
            return 0
        returned = self._give_back(decision.size, now)
        self._policy.recalled(asked=decision.size, returned=returned, now=now)
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
        goals = cache.targets(self._profiles(now, idle - set(awaited)), room, chunk=chunk)
        short = {name: align_up(goal, chunk) - self.weights[name].held for name, goal in goals.items()}
        lacking = [name for name, size in short.items() if size > 0]
        if not lacking:
            return None
        model = max(lacking, key=lambda name: (name == self._expected, short[name], name))
        if self._idle_bytes() + chunk <= self._budget:
            if not self._granted(chunk, now, minimum=0):
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

    def _granted(self, size: int, now: float, minimum: int | None = None) -> bool:
        sample = self.dram.sample()
        decision = self._policy.grant(
            sample, self._held(), size=size, minimum=size if minimum is None else minimum, now=now
        )
        return decision.size >= size and self.dram.available >= size

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
            victims = functools.partial(_victims, profiles, self.dram.chunk)
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
        profiles = []
        for name in models:
            model, costs = self._models[name], self._costs[name]
            profile = Profile(
                model=name,
                weights=model.weights,
                rate=self._log.rate(name, now),
                share=self._log.share(name, now),
                prompt=self._log.usual_prompt(name, now),
                speeds=Speeds(restore=1 / costs.restore, prefill=1 / costs.prefill),
            )
            if name == self._expected:
                profile = dataclasses.replace(profile, rate=profile.rate + 1 / _SOON, share=1.0)
            profiles.append(profile)
        return profiles


def _victims(
    profiles: Sequence[Profile], chunk: int, resident: Mapping[Part, int], size: int
) -> Sequence[tuple[Part, int]]:
    """Return what weights lose so that `size` bytes come free at the least loss; no KV is idle here."""
    weights = {model: held for (model, _), held in resident.items()}
    return cheapest(cache.losses(profiles, weights, chunk=chunk), (), size, chunk=chunk)
