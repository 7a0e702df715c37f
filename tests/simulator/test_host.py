"""The simulated Linux host: what others lose to us, what they get back, and what the policy is told."""

from __future__ import annotations

import dataclasses

import pytest

from flexserve.policy.pressure import Limits
from flexserve.simulator.events import Simulation
from flexserve.simulator.host import Host, Settings
from flexserve.simulator.host_memory import HostMemory, Others
from flexserve.simulator.load import Change, Load, Request, built_in
from flexserve.simulator.machine import SimModel
from flexserve.simulator.residence import Choice
from flexserve.units import GIB, MIB

MODEL = SimModel("model", 1e9, 20)
CHUNK = 32 * MIB


def memory_with(others: Others) -> tuple[Simulation, HostMemory]:
    simulation = Simulation()
    memory = HostMemory(simulation, 4 * GIB, CHUNK)
    memory.want(others)
    return simulation, memory


def passed(simulation: Simulation, memory: HostMemory, seconds: float) -> None:
    for _ in range(int(seconds)):
        simulation.run(simulation.now + 1.0)
        memory.sample()


def load(*, asked=(10.0,), changes=(), memory=4 * GIB, hours=0.2, model=MODEL) -> Load:
    requests = tuple(Request(at, model.name, 32, 4) for at in asked)
    return Load("test", memory, (model,), requests, tuple(changes), hours)


def settings(memory=4 * GIB, **changes) -> Settings:
    return Settings(dataclasses.replace(Limits.for_machine(memory), **changes), Choice())


def test_files_that_fit_cost_nothing_once_they_are_read():
    simulation, memory = memory_with(Others(files=GIB, speed=400e6))
    passed(simulation, memory, 60)
    assert memory.cost.slowdown == pytest.approx(0.0, abs=1e-9)
    assert memory.sample().refaulted == 0
    assert memory.free < 3 * GIB + CHUNK


def test_files_that_no_longer_fit_beside_us_are_read_back_slow_their_user_and_count_as_kept():
    simulation, memory = memory_with(Others(files=3 * GIB, speed=400e6))
    passed(simulation, memory, 60)
    pages = memory.take(2 * GIB // CHUNK)
    passed(simulation, memory, 60)
    sample = memory.sample()
    assert (sample.refaulted or 0) > 100 * MIB
    assert (sample.free or 0) < 128 * MIB
    assert (sample.stall or 0) > 1.0
    assert memory.cost.slowdown > 0.1
    assert memory.cost.kept > 60 * 0.9 * GIB
    lost = memory.cost.slowdown
    memory.give(pages)
    passed(simulation, memory, 300)
    assert memory.cost.slowdown < lost, "they have it back, and lose no more"


def test_what_does_not_fit_in_any_case_is_not_our_doing():
    simulation, memory = memory_with(Others(files=8 * GIB, speed=400e6))
    passed(simulation, memory, 120)
    assert (memory.sample().refaulted or 0) > 0
    assert memory.cost.slowdown == pytest.approx(0.0, abs=1e-9)
    assert memory.cost.kept == 0


def test_who_needs_memory_that_we_hold_waits_for_it_and_then_gets_it():
    simulation, memory = memory_with(Others())
    pages = memory.take(3 * GIB // CHUNK)
    memory.want(Others(own=2 * GIB))
    passed(simulation, memory, 10)
    assert memory.background == GIB
    assert (memory.sample().stall or 0) > 50
    memory.give(pages)
    passed(simulation, memory, 5)
    assert memory.background == 2 * GIB
    assert memory.cost.slowdown > 1


def test_memory_goes_back_when_others_grow_and_comes_again_with_the_next_request():
    grown = Change(60.0, Others(own=int(3.6 * GIB)))
    shrunk = Change(300.0, Others(own=0))
    host = Host(load(asked=(10.0, 400.0), changes=(grown, shrunk)), settings())
    host.simulation.run(50)
    assert host.memory.secure > 0.9e9
    host.simulation.run(100)
    assert host.memory.secure < 0.6e9
    assert host.memory.available >= 0
    outcome = host.run()
    assert host.memory.secure > 0.9e9
    assert outcome.requests == 2
    assert outcome.slowdown < 0.1


def test_a_model_that_does_not_fit_is_streamed_and_takes_longer():
    large = SimModel("large", 6e9, 20)
    small = Host(load(model=large, memory=16 * GIB), settings(16 * GIB)).run()
    streamed = Host(load(model=large, memory=4 * GIB), settings()).run()
    assert streamed.first_token > small.first_token / 2
    assert streamed.held < 4 * GIB


def test_idle_models_give_their_working_memory_back_after_keep_alive():
    def held(seconds: float) -> float:
        chosen = dataclasses.replace(settings(), keep_alive=seconds)
        return Host(load(), chosen).run().held

    assert held(30.0) < held(600.0)


def test_the_same_load_and_settings_give_the_same_outcome_and_others_do_not():
    loads = built_in(0.3, 5)
    outcomes = [Host(each, settings(each.memory)).run() for each in loads]
    assert outcomes == [Host(each, settings(each.memory)).run() for each in loads]
    assert [each.name for each in loads] == ["desk", "builds", "files", "agents"]
    assert built_in(0.3, 5) == loads != built_in(0.3, 6)
