"""What happens on a simulated host: requests to models, and what other programs want, over hours.

Built-in loads are drawn at random, and the same seed draws the same. Each has another mixture of
foreground and background: what changes is how much memory others want, how suddenly, and whether it is
their own or files.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator

from flexserve.simulator.host_memory import Others
from flexserve.simulator.machine import Machine, SimModel
from flexserve.units import GIB, KIB, MIB

HOUR = 3600.0

# Two cores of an x86-64 virtual machine, as docs/measurements.md and docs/design.md ("Numbers behind
# the choices") have it: a 1.1 B model of 607 MiB computes 132 prompt tokens and 45 tokens a second; two
# threads get a page of secret memory in 13 µs; 512 MiB go back in 167 ms. With the file in the page cache,
# reading and decrypting cost less than that. Weights are a byte for each parameter here.
TWO_CORES = Machine(
    allocate=13e-6 / (4 * KIB),
    reclaim=0.167 / (512 * MIB),
    protect=0.0,
    load=1 / 1.5e9,
    decrypt=1 / 4e9,
    cpu_prefill=132 * 1.1e9 / 8.03e9,
    decode_bandwidth=1.3 * 45 * 607 * MIB,
    working_memory=0.05,
    mode_switch=0.0,
    task_launch=0.0,
    stage2_slowdown=0.0,
    stage2_wake=0.0,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """Somebody asks: `model` answers `prompt` tokens with `answer` tokens (both at least one)."""

    at: float  # seconds
    model: str
    prompt: int
    answer: int


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """From `at` (seconds) on, others want this."""

    at: float
    others: Others


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """All that happens on one host. Requests and changes are in the order of their times."""

    name: str
    memory: int  # bytes of RAM
    models: tuple[SimModel, ...]
    requests: tuple[Request, ...]
    changes: tuple[Change, ...]
    hours: float


_SMALL = SimModel("small", 0.6e9, 16)
_MIDDLE = SimModel("middle", 1.2e9, 28)
_LARGE = SimModel("large", 2.4e9, 32)
_MODELS = (_SMALL, _MIDDLE, _LARGE)


def built_in(hours: float, seed: int) -> list[Load]:
    """Return the loads that defaults are tuned for, each `hours` long."""
    return [
        make(hours, random.Random(f"{seed} {make.__name__}")) for make in (_desk, _builds, _files, _agents)
    ]


def _desk(hours: float, chance: random.Random) -> Load:
    """A person at a desk: programs of all sizes come and go, and there is a question now and then."""
    changes, own = [], 3.0
    for at in _times(chance, hours, 90.0):
        own = min(7.2, max(1.0, own + chance.gauss(0, 0.8)))
        changes.append(Change(at, Others(int(own * GIB), int(chance.uniform(0.2, 1.5) * GIB), 20e6)))
    requests = _visits(chance, hours, 240.0, lambda: chance.choices(_MODELS, (5, 3, 1))[0])
    return Load("desk", 8 * GIB, _MODELS, tuple(requests), tuple(changes), hours)


def _builds(hours: float, chance: random.Random) -> Load:
    """Compilers: for minutes they want nearly all memory at once, and then nothing."""
    changes, busy = [], False
    for at in _times(chance, hours, 240.0):
        busy = not busy
        own = chance.uniform(4.5, 6.9) if busy else 1.0
        changes.append(Change(at, Others(int(own * GIB), int(0.8 * GIB), 100e6 if busy else 0.0)))
    requests = _visits(chance, hours, 180.0, lambda: chance.choices(_MODELS, (5, 3, 1))[0])
    return Load("builds", 8 * GIB, _MODELS, tuple(requests), tuple(changes), hours)


def _files(hours: float, chance: random.Random) -> Load:
    """A database whose files nearly fit, or just not, and are used at every speed."""
    changes = [
        Change(at, Others(GIB, int(chance.uniform(1.0, 9.0) * GIB), chance.choice((0.0, 30e6, 200e6, 800e6))))
        for at in _times(chance, hours, 400.0)
    ]
    requests = _visits(chance, hours, 150.0, lambda: chance.choices(_MODELS[:2], (2, 1))[0])
    return Load("files", 8 * GIB, _MODELS[:2], tuple(requests), tuple(changes), hours)


def _agents(hours: float, chance: random.Random) -> Load:
    """Agents whose models call each other in rounds, on a small host with little else."""
    changes = [
        Change(at, Others(int(chance.uniform(0.5, 2.5) * GIB), int(0.5 * GIB), 50e6))
        for at in _times(chance, hours, 300.0)
    ]
    requests = []
    for at in _times(chance, hours, 300.0):
        for place in range(6):
            model = (_SMALL, _MIDDLE)[place % 2]
            prompt, answer = chance.choice((32, 128)), chance.choice((4, 32))
            requests.append(Request(at + 8 * place, model.name, prompt, answer))
    requests.sort(key=lambda request: request.at)
    return Load("agents", 4 * GIB, (_SMALL, _MIDDLE), tuple(requests), tuple(changes), hours)


def _visits(
    chance: random.Random, hours: float, pause: float, choose: Callable[[], SimModel]
) -> Iterator[Request]:
    """Ask one to five questions of one model, some seconds apart, every `pause` seconds in the mean."""
    found = []
    for at in _times(chance, hours, pause):
        model, asked = choose(), at
        for _ in range(chance.randint(1, 5)):
            prompt, answer = chance.choice((16, 64, 256)), chance.choice((1, 16, 64))
            found.append(Request(asked, model.name, prompt, answer))
            asked += chance.uniform(5, 40)
    return iter(sorted(found, key=lambda request: request.at))


def _times(chance: random.Random, hours: float, pause: float) -> Iterator[float]:
    at = chance.expovariate(1 / pause)
    while at < hours * HOUR:
        yield at
        at += chance.expovariate(1 / pause)
