"""A simulated board with one server on it, ready to be asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from flexserve.policy.pressure import Limits, PressurePolicy
from flexserve.simulator.designs import Design
from flexserve.simulator.dram import Dram
from flexserve.simulator.events import Simulation
from flexserve.simulator.machine import RK3588, Machine, SimModel
from flexserve.simulator.server import Server, Ticket
from flexserve.units import GIB, MIB

_GROWTH = 512 * MIB  # bytes per second; less than the distance of the lines that recalls keep to


class Rig:
    """One design on one board."""

    def __init__(
        self,
        design: Design,
        models: Sequence[SimModel],
        *,
        budget: int,
        background: int = 8 * GIB,
        machine: Machine = RK3588,
        chunk: int = 8 * MIB,
    ) -> None:
        self.dram = Dram(machine.memory, background, chunk)
        # The paper runs 8 B models beside 8 GB of other load on a board of 16 GB, which leaves the OS
        # next to nothing: a request for what it needs may have the last of memory.
        limits = dataclasses.replace(Limits.for_machine(machine.memory), emergency=0)
        self.simulation = Simulation()
        self.server = Server(
            self.simulation,
            machine,
            design,
            models,
            dram=self.dram,
            budget=budget,
            policy=PressurePolicy(limits, chunk=chunk),
        )

    def ask(self, model: str, prompt: int, answer: int = 1) -> Ticket:
        """Ask now, let time pass until the answer is complete, and return what became of it."""
        ticket = self.server.submit(model, prompt, answer)
        while ticket.ended is None:
            self.simulation.step()
        return ticket

    def press(self, background: int) -> None:
        """Let the load of others grow to `background` bytes, as fast as an app allocates in earnest.

        The normal world looks at memory and recalls as it goes.
        """
        self.simulation.run(self.simulation.now + 1.0)  # what is being given back is back
        while self.dram.background < background:
            self.dram.background = min(background, self.dram.background + _GROWTH)
            self.simulation.run(self.simulation.now + 1.0)
            self.server.residence.pressed(self.simulation.now)
