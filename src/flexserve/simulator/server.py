"""The framework in virtual time: the policies of flexserve.policy, driven by the simulated machine.

One engine works off turns that flexserve.policy.schedule gives out: the beginning of a request, with
the restore of what is missing of its model, or a few tokens of every sequence of a model. While the
engine computes or rests, a background loader brings in what flexserve.policy.eviction would have
resident and is not, the expected next model's part first.

What is simplified: weights of running models are never recalled (a recall that they alone could
meet is met when they end), no request takes over another's KV cache, and a request is refused when its
model cannot be wholly resident. With `streaming` it is answered all the same, as the real one would be:
what there was no memory for is read anew for each pass.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence

from flexserve.policy.pressure import PressurePolicy
from flexserve.policy.schedule import Lane, Turns
from flexserve.simulator.designs import Costs, Design, Keeping
from flexserve.simulator.dram import Dram
from flexserve.simulator.events import Process, Signal, Simulation
from flexserve.simulator.machine import Machine, SimModel
from flexserve.simulator.pipeline import Parts, Pipeline
from flexserve.simulator.residence import Choice, Residence

_SLOTS = 4  # sequences of a model that are generated at a time
_CHUNK = 8  # tokens of a decode turn
_LOADERS = 2  # chunks that the background loader has claimed: one is read while one is decrypted


@dataclasses.dataclass(slots=True)
class Ticket:
    """A request and what became of it. Times in seconds of virtual time."""

    model: str
    prompt: int  # tokens
    answer: int  # tokens
    asked: float
    first: float | None = None  # when the first token came
    ended: float | None = None
    refused: bool = False  # memory was too short for it
    parts: Parts = dataclasses.field(default_factory=Parts)
    produced: int = 0  # tokens
    prepared: int = 0  # bytes of working memory that it had to allocate
    taken: list[int] = dataclasses.field(default_factory=list)  # chunks that it had to restore
    streamed: int = 0  # bytes of weights that there was no memory for

    @property
    def ttft(self) -> float:
        """Seconds to the first token, of a request that was answered."""
        assert self.first is not None
        return self.first - self.asked


class _Queue:
    """Who waits for a model, and who is being answered by it."""

    def __init__(self) -> None:
        self.waiting: deque[Ticket] = deque()
        self.active: list[Ticket] = []


class Server:
    """One design serving `models` on one machine. `budget` is how many bytes idle models may hold."""

    def __init__(
        self,
        simulation: Simulation,
        machine: Machine,
        design: Design,
        models: Sequence[SimModel],
        *,
        dram: Dram,
        budget: int,
        policy: PressurePolicy,
        choice: Choice | None = None,
        streaming: bool = False,
    ) -> None:
        self._streaming = streaming
        self._simulation, self._machine, self._design, self._dram = simulation, machine, design, dram
        self._models = {model.name: model for model in models}
        self._costs = {model.name: Costs.of(design, model, machine, dram.background) for model in models}
        self._queues = {model.name: _Queue() for model in models}
        self.residence = Residence(
            design, models, dram=dram, budget=budget, policy=policy, choice=choice or Choice()
        )
        self._pipeline = Pipeline(simulation, design)
        self._turns = Turns()
        self._urgent = False  # a request waits for memory or a restore: the background loader rests
        self._fetching = 0  # chunks that the background loader has claimed
        self._slept_at = float("-inf")  # when there was work last
        self._arrived = Signal(simulation)
        self._settled = Signal(simulation)  # the background loader may have something to do
        self._fetched = Signal(simulation)
        self.ended = Signal(simulation)  # fires when requests ended
        self.refused = 0  # requests
        simulation.spawn(self._work())
        if design.keeping is Keeping.MOST_VALUABLE:
            for _ in range(_LOADERS):
                simulation.spawn(self._fetch())

    def submit(self, model: str, prompt: int, answer: int) -> Ticket:
        """Queue a request of `prompt` tokens that is answered with `answer` tokens, at least one."""
        now = self._simulation.now
        ticket = Ticket(model, prompt, answer, asked=now)
        self.residence.note(model, prompt, now)
        self._queues[model].waiting.append(ticket)
        self._arrived.fire()
        self._settled.fire()
        return ticket

    # ---- the engine -------------------------------------------------------------------------------

    def _work(self) -> Process:
        while True:
            model = self._turns.next(self._lanes(), self._simulation.now)
            if model is None:
                self._slept_at = self._simulation.now
                yield self._arrived
            else:
                yield from self._turn(model)
                self._settled.fire()

    def _lanes(self) -> list[Lane]:
        return [
            Lane(
                name,
                active=len(queue.active),
                waiting=len(queue.waiting),
                oldest=queue.waiting[0].asked if queue.waiting else None,
                priority=0,
                missing=self.residence.weights[name].missing * self._costs[name].restore,
            )
            for name, queue in self._queues.items()
        ]

    def _turn(self, model: str) -> Process:
        queue = self._queues[model]
        if queue.waiting and len(queue.active) < _SLOTS and self._reserve(queue.waiting[0]):
            ticket = queue.waiting.popleft()
            queue.active.append(ticket)
            yield from self._begin(ticket)
            yield from self._finish(model)
            if self._design.keeping is Keeping.NOTHING:  # one request at a time, to its end
                while queue.active:
                    yield from self._generate(model)
                    yield from self._finish(model)
        elif busy := next((name for name in (model, *self._queues) if self._queues[name].active), None):
            yield from self._generate(busy)  # memory comes free when those who run end
            yield from self._finish(busy)
        elif self._fetching:  # a claimed chunk cannot be evicted before it is there
            self._urgent = True
            yield self._fetched
            self._urgent = False
        else:
            ticket = queue.waiting.popleft()
            ticket.refused, ticket.ended = True, self._simulation.now
            self.refused += 1
            self.ended.fire()

    def _reserve(self, ticket: Ticket) -> bool:
        """Take all memory that a request needs and its model has not; return whether there was enough."""
        working = self._working_memory(ticket.model)
        taken = self.residence.reserve(ticket.model, working, self._simulation.now, partly=self._streaming)
        if taken is None:
            return False
        ticket.taken, fresh = taken
        ticket.streamed = len(self.residence.weights[ticket.model].absent()) * self._dram.chunk
        ticket.prepared = working if fresh else 0
        return True

    def _working_memory(self, model: str) -> int:
        return int(self._models[model].parameters * self._machine.working_memory)

    def _begin(self, ticket: Ticket) -> Process:
        """Bring the model in and compute the prompt."""
        weights, costs, parts = self.residence.weights[ticket.model], self._costs[ticket.model], ticket.parts
        slept = self._simulation.now - self._slept_at
        wake = self._design.wake if slept > self._machine.stage2_window else 0.0
        parts.other += self._design.start + self._design.handover + wake
        yield self._design.start + self._design.handover + wake
        prepared = ticket.prepared
        if self._design.whole:
            prepared += sum(weights.size(chunk) for chunk in ticket.taken)
        parts.prepare += prepared * (costs.allocate + costs.protect)
        yield from self._pipeline.cpu.use(prepared * (costs.allocate + costs.protect))
        self._urgent = bool(ticket.taken)
        began, computed = self._simulation.now, ticket.prompt * costs.prefill
        yield from self._pipeline.run(
            weights, ticket.taken, costs, ticket.prompt, parts, streamed=ticket.streamed
        )
        self._urgent = False
        waited = self._simulation.now - began - computed
        self.residence.learned.computed(ticket.model, ticket.prompt, computed)
        self.residence.learned.restored(len(ticket.taken) * self._dram.chunk, waited, computed)
        ticket.first, ticket.produced = self._simulation.now, 1

    def _generate(self, model: str) -> Process:
        """Compute a few tokens of every sequence of a model."""
        active = self._queues[model].active
        tokens = min(_CHUNK, *(ticket.answer - ticket.produced for ticket in active))
        costs = self._costs[model]
        seconds = costs.decode * (1 + self._design.slowdown) + self._design.pass_overhead
        streaming = max(ticket.streamed for ticket in active) * costs.stream
        yield from self._pipeline.engine.use(tokens * max(seconds, streaming))
        for ticket in active:
            ticket.produced += tokens

    def _finish(self, model: str) -> Process:
        """End the requests that have all their tokens."""
        queue = self._queues[model]
        done = [ticket for ticket in queue.active if ticket.produced >= ticket.answer]
        queue.active = [ticket for ticket in queue.active if ticket.produced < ticket.answer]
        for ticket in done:
            ticket.ended = self._simulation.now
        returned = 0
        if not queue.active:
            returned = self.residence.rest(model, self._simulation.now)
        self.ended.fire()
        giving = self._pipeline.cpu.use(returned * self._costs[model].give_back)
        if self._design.contiguous:
            yield from giving  # the next request allocates the same region
        else:
            self._simulation.spawn(giving)

    # ---- the background loader --------------------------------------------------------------------

    def _fetch(self) -> Process:
        while True:
            awaited = [name for name, queue in self._queues.items() if queue.waiting]
            found = None if self._urgent else self.residence.wanted(awaited, self._simulation.now)
            if found is None:
                yield self._settled
                continue
            model, chunk = found
            weights = self.residence.weights[model]
            self._pipeline.restore(weights, [chunk], self._costs[model], Parts())
            self._fetching += 1
            yield from self._pipeline.wait(weights, chunk)
            self._fetching -= 1
            self._fetched.fire()
