"""`python -m flexserve.bench.paper.long_simulation`: FlexServe on the simulated board for a thousand hours.

People ask at random: mostly one model at a time, sometimes an agent workflow whose calls follow each
other. Others' memory use wanders between little and nearly all, and the normal world recalls as it
goes. Memory must be conserved and the cache within its budget after every change of either.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
import sys
import time
from collections.abc import Sequence

from flexserve.simulator.designs import designs
from flexserve.simulator.events import Process
from flexserve.simulator.machine import PAPER_MODELS, RK3588
from flexserve.simulator.rig import Rig
from flexserve.simulator.server import Ticket
from flexserve.units import GIB, MIB, format_size

_PAUSE = 600.0  # seconds between visits, in the mean
_WORKFLOWS = ((0, 1), (0, 1, 2), (1, 3))  # by place in PAPER_MODELS
_STEP = 60.0  # seconds between changes of others' memory use
_STRIDE = 512 * MIB  # the largest of those changes
_LEAST, _MOST = 2 * GIB, 14 * GIB  # of others' memory use


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What happened. Times in seconds, sizes in bytes."""

    hours: float
    requests: int
    refused: int  # because others left too little memory for the model
    ttft_median: float
    ttft_worst: float
    recalled: int
    events: int


class Workload:
    """Random visitors and random others on one board."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._rig = Rig(
            designs(RK3588)["flexserve"], PAPER_MODELS, budget=6 * GIB, background=_LEAST, chunk=256 * MIB
        )
        self._tickets: list[Ticket] = []
        self._rig.simulation.spawn(self._visit())
        self._rig.simulation.spawn(self._wander())

    def run(self, hours: float) -> Outcome:
        """Let `hours` of virtual time pass. Memory is checked after every change (AssertionError)."""
        simulation, residence = self._rig.simulation, self._rig.server.residence
        simulation.run(simulation.now + hours * 3600)
        residence.check()
        answered = [ticket.ttft for ticket in self._tickets if ticket.first is not None]
        return Outcome(
            hours=hours,
            requests=len(self._tickets),
            refused=self._rig.server.refused,
            ttft_median=statistics.median(answered),
            ttft_worst=max(answered),
            recalled=residence.recalled,
            events=simulation.events,
        )

    def _visit(self) -> Process:
        chance = self._random
        while True:
            yield chance.expovariate(1 / _PAUSE)
            if chance.random() < 0.8:
                self._ask(chance.choices(range(len(PAPER_MODELS)), (5, 3, 1, 1))[0])
                continue
            for call in chance.choice(_WORKFLOWS) * 3:
                ticket = self._ask(call)
                while ticket.ended is None:
                    yield self._rig.server.ended

    def _ask(self, model: int) -> Ticket:
        prompt, answer = self._random.choice((32, 128, 512)), self._random.choice((1, 16, 64))
        ticket = self._rig.server.submit(PAPER_MODELS[model].name, prompt, answer)
        self._tickets.append(ticket)
        return ticket

    def _wander(self) -> Process:
        while True:
            yield _STEP
            change = self._random.randint(-_STRIDE, _STRIDE)
            self._rig.dram.background = min(_MOST, max(_LEAST, self._rig.dram.background + change))
            self._rig.server.residence.pressed(self._rig.simulation.now)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it, print what happened and how long it took; return 0."""
    parser = argparse.ArgumentParser(description="FlexServe on a simulated board, for many hours.")
    parser.add_argument("--hours", type=float, default=1000.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    found = Workload(options.seed).run(options.hours)
    took = time.perf_counter() - began
    sys.stdout.write(
        f"{found.hours:g} simulated hours in {took:.1f} s, {found.events} events: {found.requests} requests, "
        f"{found.refused} refused for want of memory; TTFT {found.ttft_median:.2f} s in the median, "
        f"{found.ttft_worst:.1f} s at worst; {format_size(found.recalled)} recalled; memory conserved\n"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
