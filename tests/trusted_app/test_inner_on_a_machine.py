"""The trusted application at S-EL0 of the emulated machine, in memory that a stock kernel grants to it."""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator

import pytest
from inner_application import QUESTION, ROOT, Application
from inner_models import Opened

from flexserve.emulator.machine import Machine
from flexserve.emulator.trusted_app import Programs
from flexserve.harness.inner import SealedFile
from flexserve.platforms.trustzone.ram import BASE, PAGE
from flexserve.protocol.trusted_app import Kind
from flexserve.tee_client.messages import Ask
from flexserve.tee_client.ring import Ring
from flexserve.testing.machines import booted
from flexserve.testing.trustzone import eventually
from flexserve.units import MIB

pytestmark = [pytest.mark.vm, pytest.mark.engine]

RAM = 512 * MIB
CHUNKS = 40  # for the model of the tests, and half of them for the heap
SAID = "/sys/kernel/debug/flexmem/said"


class AtSEl0(Application):
    """The application of a machine, driven through the ring in its RAM: the test plays its user space."""

    def __init__(self, machine: Machine, *, threads: int = 1) -> None:
        self._machine = machine
        state = machine.agent.ask("flexmem")
        size = state["ring_pages"] * PAGE
        memory = memoryview(mmap.mmap(machine.ram_fd, size, offset=state["ring_page"] * PAGE - BASE))
        self.drive(Ring(memory, self._rest, self._told), threads=threads)

    def _told(self) -> None:
        self._machine.agent.ask("write", SAID, "1")

    def _rest(self) -> None:
        self._machine.require_alive()
        time.sleep(0.0005)


@pytest.fixture
def machine(programs: Programs) -> Iterator[Machine]:
    with booted(RAM, application=programs.application, secret=ROOT) as machine:
        yield machine


def test_the_demos_model_answers_from_s_el0_and_its_memory_goes_back(
    machine: Machine, sealed: SealedFile
) -> None:
    app = AtSEl0(machine)
    assert app.inside == 1
    assert app.do(Ask.GRANT, CHUNKS).values[0] == CHUNKS
    assert app.do(Ask.HEAP, CHUNKS // 2, 1).values[0] == CHUNKS // 2
    model = Opened(app, sealed)
    model.write()
    assert machine.monitor().pages["SECURE"] == CHUNKS * app.chunk
    said = model.answer(model.tokenise(QUESTION), most=12)
    assert model.detokenise(said).startswith("Flex-Mem is recallable secure memory.")
    gone = model.do(Ask.EVICT, Kind.WEIGHTS, 0, model.chunks).values[0]
    assert gone > 0
    back = app.do(Ask.GIVE_BACK, CHUNKS).values[0]
    assert back >= gone
    assert eventually(lambda: machine.monitor().pages["SECURE"] == (CHUNKS - back) * app.chunk)
    assert sum(machine.monitor().pages.values()) == RAM


def test_the_ring_lasts_beyond_the_driver(machine: Machine) -> None:
    app = AtSEl0(machine)
    machine.agent.ask("unload", "flexmem", seconds=60)
    machine.agent.ask("load", "flexmem")
    assert app.do(Ask.GRANT, 2).values[0] == 2
    assert app.do(Ask.GIVE_BACK, 2).values[0] == 2


def test_the_tick_of_the_guest_leaves_lent_cpus_alone_but_the_first_one(machine: Machine) -> None:
    assert machine.agent.ask("read", "/sys/devices/system/cpu/nohz_full")["text"] == "1\n"
