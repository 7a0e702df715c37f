"""The NPU of the TrustZone machine keeps the contract, before the real device and a monitor in Python."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from flexserve.platforms.trustzone.flexnpu import TrustZoneNpu
from flexserve.platforms.trustzone.secure_memory import TrustZoneMemory
from flexserve.testing.npu_contract import NpuContract
from flexserve.testing.trustzone_npu import DRIVER, NpuMachine
from flexserve.units import KIB, MIB


class MachineRig:
    def __init__(self, machine: NpuMachine) -> None:
        self._machine = machine
        pages = machine.unbegun()
        self.memory = TrustZoneMemory(pages, 64 * KIB)
        self.npu = TrustZoneNpu(pages, self.memory, DRIVER)
        pages.start(self.npu)
        arena = self.memory.reserve(self.memory.chunk)  # who holds memory is attached
        self.memory.commit(arena, 0, arena.size)

    def refuse(self) -> None:
        self._machine.lender.willing = False

    def relent(self) -> None:
        self._machine.relent()

    def call_back(self, seconds: float) -> None:
        self._machine.gate.ask(int(seconds * 1000))

    def hang(self) -> None:
        self._machine.device.stuck = True

    def heal(self) -> None:
        self._machine.device.stuck = False


class TestTrustZoneNpu(NpuContract):
    @contextlib.contextmanager
    def rig(self) -> Iterator[MachineRig]:
        with NpuMachine(64 * MIB) as machine:
            yield MachineRig(machine)
