"""A simulated Linux host with one server on it, under a load, with settings that can be tuned.

The policies are those of flexserve.policy, at the moments at which the server asks them: for each
request, and for each look at memory that flexserve.policy.pressure itself schedules.
"""

from __future__ import annotations

import dataclasses
import math
import statistics

from flexserve.policy.pressure import LONGEST_PERIOD, SHORTEST_PERIOD, Holdings, Limits, PressurePolicy
from flexserve.simulator.designs import Design, Keeping
from flexserve.simulator.events import Process, Simulation
from flexserve.simulator.host_memory import HostMemory
from flexserve.simulator.load import HOUR, TWO_CORES, Load
from flexserve.simulator.residence import Choice
from flexserve.simulator.server import Server, Ticket
from flexserve.units import MIB

_CHUNK = 32 * MIB  # on Linux a chunk is smaller, which changes no decision that matters and takes longer
_TAIL = 0.95  # which of the times to first token counts

LINUX = Design(
    "FlexServe on Linux",
    npu=False,
    pipelined=True,
    contiguous=False,
    whole=False,
    sealed=True,
    keeping=Keeping.MOST_VALUABLE,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What can be tuned. `keep_alive`: seconds that an idle model keeps its working memory."""

    limits: Limits
    choice: Choice
    keep_alive: float = 300.0


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a load. Times in seconds, `kept` and `held` in bytes over the mean of all time."""

    first_token: float  # 95 % of the requests had theirs within this time
    kept: float  # that models held while others lacked as much
    slowdown: float  # of others' work: 0.01 is one per cent longer
    held: float  # that models held at all
    requests: int
    hours: float


class Host:
    """One server under one load."""

    def __init__(self, load: Load, settings: Settings) -> None:
        self._load, self._settings = load, settings
        self.simulation = Simulation()
        self.memory = HostMemory(self.simulation, load.memory, _CHUNK)
        self._policy = PressurePolicy(settings.limits, chunk=_CHUNK)
        self.server = Server(
            self.simulation,
            TWO_CORES,
            LINUX,
            load.models,
            dram=self.memory,
            budget=load.memory,
            policy=self._policy,
            choice=settings.choice,
            streaming=True,
        )
        self._tickets: list[Ticket] = []
        for process in (self._ask(), self._change(), self._watch()):
            self.simulation.spawn(process)

    def run(self) -> Outcome:
        """Let all of the load happen, and return what came of it."""
        self.simulation.run(self._load.hours * HOUR)
        self.memory.sample()
        self.server.residence.check()
        cost = self.memory.cost
        times = [
            (self.simulation.now if ticket.first is None else ticket.first) - ticket.asked
            for ticket in self._tickets
        ]
        return Outcome(
            first_token=_quantile(times, _TAIL),
            kept=cost.kept / cost.seconds,
            slowdown=cost.slowdown,
            held=cost.held / cost.seconds,
            requests=len(times),
            hours=self._load.hours,
        )

    def _ask(self) -> Process:
        for request in self._load.requests:
            yield max(0.0, request.at - self.simulation.now)
            ticket = self.server.submit(request.model, request.prompt, request.answer)
            self._tickets.append(ticket)

    def _change(self) -> Process:
        for change in self._load.changes:
            yield max(0.0, change.at - self.simulation.now)
            self.memory.want(change.others)

    def _watch(self) -> Process:
        """Look at memory as the broker does: never while nothing is granted, else as the policy says."""
        residence, policy = self.server.residence, self._policy
        while True:
            now = self.simulation.now
            residence.expire(now, self._settings.keep_alive)
            if not self.memory.secure:
                yield LONGEST_PERIOD
            elif residence.pressed(now):
                yield SHORTEST_PERIOD
            else:
                held = Holdings(self.memory.secure, self.memory.secure)
                yield policy.period(self.memory.sample(), held, now=now)


def _quantile(values: list[float], part: float) -> float:
    """Return the value that `part` of all are not above; 0 when there are none."""
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)] if values else 0.0


def mean(outcomes: list[Outcome]) -> Outcome:
    """Return the outcome of several loads: each counts alike, whatever its length."""
    return Outcome(
        first_token=statistics.fmean(each.first_token for each in outcomes),
        kept=statistics.fmean(each.kept for each in outcomes),
        slowdown=statistics.fmean(each.slowdown for each in outcomes),
        held=statistics.fmean(each.held for each in outcomes),
        requests=sum(each.requests for each in outcomes),
        hours=sum(each.hours for each in outcomes),
    )
