"""Ends of all kinds, at random moments of answers: `python tests/attacks/inside_restarts.py [ROUNDS [SEED]]`.

As root, after `make trusted-app`. The first half of the rounds has a driver of its own: a round resets the
machine, cuts it off from power, or kills its driver and then does one of the two. In the second half a server
answers, and a round ends it in one of the ways of `ends.ATTACKS`. What was sealed goes on each time, and
nothing may be found.
"""

from __future__ import annotations

import random
import secrets
import sys
import tempfile
from pathlib import Path

from flexserve.attacks.attempt import Verdict, attempt
from flexserve.attacks.trustzone.inside.ends import ATTACKS, Ended
from flexserve.attacks.trustzone.inside.restarts import (
    Driven,
    kill_the_driver,
    lose_power,
    reset_in_the_midst,
)
from flexserve.attacks.trustzone.scene import CPUS, RAM_BYTES
from flexserve.emulator.images import images_for


def main(rounds: int, seed: int) -> int:
    """Make the rounds; return how many attacks were not stopped."""
    dice = random.Random(seed)
    broken = 0
    images = images_for(ram_bytes=RAM_BYTES, cpus=CPUS, progress=_say, inside=True)
    with tempfile.TemporaryDirectory() as folder, Driven.set(images, Path(folder), seed=seed) as driven:
        for number in range(rounds // 2):
            ends = [dice.choice((reset_in_the_midst, lose_power))]
            if dice.random() < 1 / 3:
                ends = [kill_the_driver, lose_power]
            for end in ends:
                made = attempt(end, driven)
                broken += made.verdict is not Verdict.STOPPED
                _say(f"{number:4} {made.verdict.value:10} {made.name}: {made.detail}")
    with tempfile.TemporaryDirectory() as folder, Ended.set(images, Path(folder), seed=seed) as server:
        for number in range(rounds // 2, rounds):
            last = attempt(dice.choice(ATTACKS), server)
            broken += last.verdict is not Verdict.STOPPED
            _say(f"{number:4} {last.verdict.value:10} {last.name}: {last.detail}")
    _say(f"{rounds} rounds, seed {seed}: {broken} not stopped")
    return broken


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    rounds, seed, *_ = (*sys.argv[1:], *("20", str(secrets.randbits(32)))[len(sys.argv) - 1 :])
    sys.exit(main(int(rounds), int(seed)))
