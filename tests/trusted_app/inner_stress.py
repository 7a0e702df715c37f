"""Looks for lost wake-ups: `python tests/trusted_app/inner_stress.py [MINUTES [SEED]]`.

After `make trusted-app`. On machines of two and of four CPUs, half of the time each, a model answers over and
over. Meanwhile CPUs are lent with malice, interrupted at any moment, kept, taken away, switched off and on,
and memory runs short. In between all weights go and come. An answer that is another one ends the run, and so
does none within a minute: somebody waits for what has happened already.
"""

from __future__ import annotations

import collections
import random
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from flexserve.attacks.attempt import Gained
from flexserve.attacks.trustzone.inside.scene import Inside
from flexserve.attacks.trustzone.scene import RAM_BYTES
from flexserve.emulator.images import images_for
from flexserve.errors import FlexServeError

_EACH = 6  # disturbances of a round
_MINUTES = "4"


def interrupt(scene: Inside, dice: random.Random) -> None:
    scene.attack("run-storm", dice.randint(20, 400), dice.getrandbits(31))


def nest(scene: Inside, dice: random.Random) -> None:
    scene.attack("run-nested", dice.randint(1, 50))


def fill_registers(scene: Inside, dice: random.Random) -> None:
    scene.attack("run-registers", dice.randint(1, 30), dice.getrandbits(31))


def keep_a_cpu(scene: Inside, dice: random.Random) -> None:
    scene.attack("starve", dice.randrange(scene.machine.cpus), dice.randint(10, 500), dice.getrandbits(31))


def switch_a_cpu(scene: Inside, dice: random.Random) -> None:
    online = f"/sys/devices/system/cpu/cpu{dice.randrange(1, scene.machine.cpus)}/online"
    for state in ("0", "1"):
        scene.machine.agent.ask("write", online, state)
        time.sleep(dice.random() / 10)


def lend_nothing(scene: Inside, dice: random.Random) -> None:
    for state in ("0", "1"):
        scene.machine.agent.ask("write", "/sys/kernel/debug/flexmem/lend", state)
        time.sleep(dice.random() / 4)


def fill_memory(scene: Inside, dice: random.Random) -> None:
    scene.run("hog", dice.randint(20, 120))


DISTURBANCES: tuple[Callable[[Inside, random.Random], None], ...] = (
    *(interrupt, nest, fill_registers, keep_a_cpu, switch_a_cpu, lend_nothing, fill_memory),
)


def stress(cpus: int, seconds: float, seed: int) -> str:
    """Disturb a machine for so long; return in words what came of it. Raises Gained and FlexServeError."""
    dice, counts = random.Random(seed), collections.Counter[str]()
    answers, waits = 0, list[float]()
    images = images_for(ram_bytes=RAM_BYTES, cpus=cpus, progress=say, inside=True)
    with tempfile.TemporaryDirectory() as folder, Inside.set(images, Path(folder), cpus=cpus) as scene:
        scene.hold()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with scene.computing() as talk:
                for disturb in dice.choices(DISTURBANCES, k=_EACH):
                    disturb(scene, dice)
                    counts[disturb.__name__] += 1
                    began = time.monotonic()
                    scene.check_canary()  # it answers, and answers again
                    waits.append(time.monotonic() - began)
            answers += talk.answers
            scene.release()
            scene.hold()
    made = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    return (
        f"{cpus} CPUs: {answers} right answers; two more after a disturbance within {max(waits):.1f} s, "
        f"{statistics.median(waits):.1f} s in the median; {made}"
    )


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(minutes: float, seed: int) -> int:
    """Return how many machines failed."""
    say(f"seed {seed}")
    broken = 0
    for cpus in (2, 4):
        try:
            say(stress(cpus, minutes * 30, seed))
        except (Gained, FlexServeError) as error:
            say(f"{cpus} CPUs: {error}")
            broken += 1
    return broken


if __name__ == "__main__":
    minutes, seed, *_ = (*sys.argv[1:], *(_MINUTES, str(secrets.randbits(31)))[len(sys.argv) - 1 :])
    sys.exit(main(float(minutes), int(seed)))
