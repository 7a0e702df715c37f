"""Virtual time: sleeping, signals, units, and the order of what happens at once."""

from __future__ import annotations

from flexserve.simulator.events import Signal, Simulation, Unit


def test_processes_sleep_and_wake_in_order_of_time():
    simulation, seen = Simulation(), []

    def sleeper(name, seconds):
        yield seconds
        seen.append((name, simulation.now))

    for name, seconds in (("late", 3.0), ("early", 1.0), ("also early", 1.0)):
        simulation.spawn(sleeper(name, seconds))
    simulation.run()
    assert seen == [("early", 1.0), ("also early", 1.0), ("late", 3.0)]


def test_a_signal_wakes_all_who_wait_and_nobody_who_comes_later():
    simulation = Simulation()
    signal, seen = Signal(simulation), []

    def waiter(name):
        yield signal
        seen.append((name, simulation.now))

    def firing():
        yield 2.0
        signal.fire()
        simulation.spawn(waiter("later"))

    simulation.spawn(waiter("first"))
    simulation.spawn(waiter("second"))
    simulation.spawn(firing())
    simulation.run()
    assert seen == [("first", 2.0), ("second", 2.0)]


def test_a_unit_does_one_thing_at_a_time_first_come_first_served():
    simulation = Simulation()
    unit, seen = Unit(simulation), []

    def user(name, seconds):
        yield from unit.use(seconds)
        seen.append((name, simulation.now))

    for name, seconds in (("a", 2.0), ("b", 0.5), ("c", 1.0)):
        simulation.spawn(user(name, seconds))
    simulation.run()
    assert seen == [("a", 2.0), ("b", 2.5), ("c", 3.5)]
    assert unit.busy == 3.5


def test_time_stops_where_it_is_told_to_and_goes_on_from_there():
    simulation, seen = Simulation(), []

    def ticking():
        while True:
            yield 1.0
            seen.append(simulation.now)

    simulation.spawn(ticking())
    simulation.run(2.5)
    assert (seen, simulation.now) == ([1.0, 2.0], 2.5)
    simulation.run(3.0)
    assert seen == [1.0, 2.0, 3.0]


def test_without_anything_to_do_time_passes_all_the_same():
    simulation = Simulation()
    simulation.run(7.0)
    assert simulation.now == 7.0
