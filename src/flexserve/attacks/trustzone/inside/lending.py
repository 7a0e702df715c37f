"""CPU time that is lent with malice: hostile registers, all CPUs, interrupts, cores that are kept.

The secure world computes meanwhile, and must say what it says when nobody interferes.
"""

from __future__ import annotations

import concurrent.futures
import secrets
import time

from flexserve.attacks.attempt import Gained, Pointless
from flexserve.attacks.trustzone.inside.scene import PROMPT, Inside
from flexserve.attacks.trustzone.scene import CPUS, HIDDEN, SECURE_RAM, expect
from flexserve.errors import PeerError
from flexserve.harness.inner import NotDone

_ROUNDS = 200
_STORM_MS, _STARVE_MS = 1500, 3000
_KEPT = 1.5  # seconds
_LEND = "/sys/kernel/debug/flexmem/lend"
_COUNTED = 0.2  # of what the same counter counts of the attacker's own time: a call's way in and out
_CPU_SUSPEND, _CPU_ON, _AFFINITY_INFO = 0x8400_0001, 0xC400_0003, 0xC400_0004  # PSCI
_INVALID_ADDRESS, _ALREADY_ON = -9, -4


def lend_with_hostile_registers(scene: Inside) -> str:
    """Lend CPUs with random registers and armed breakpoints; look for what it leaves in registers."""
    seed = secrets.randbits(32)
    careless = scene.attack("run-registers", 3, seed, "careless")
    if careless["altered"] < careless["runs"]:
        raise Pointless("it does not see that registers were not put back")
    with scene.computing() as talk:
        made = scene.attack("run-registers", _ROUNDS, seed)
        before = talk.answers
        _lent(made)
    if made["altered"]:
        raise Gained(f"{made['altered']} registers had other values afterwards ({made['first']})")
    return f"EL3 puts all of them aside, each world's, {made['runs']} times; {before} right answers meanwhile"


def lend_from_all_cpus(scene: Inside) -> str:
    """Lend all CPUs at once, interrupt them at any instruction, and lend them behind interrupts, too."""
    storm = "run-storm", _STORM_MS, secrets.randbits(31)
    made = [_asking_meanwhile(scene, *storm)]
    with scene.computing():
        made.append(scene.attack(*storm))
        made.append(scene.attack("run-nested", _ROUNDS))  # of the driver's threads, which lend them
        scene.check_canary()
    for each in made:
        _lent(each)
    interrupted = sum(each["interrupted"] for each in made)
    if not interrupted:
        raise Pointless("nothing was interrupted")
    return f"it goes on where it was, {interrupted} times, whoever lends; the answers are the same"


def starve_cores(scene: Inside) -> str:
    """Have a core stand still wherever it is, over and over, while the other one goes on; then keep both."""
    for core in range(CPUS):
        _lent(_asking_meanwhile(scene, "starve", core, _STARVE_MS, secrets.randbits(31)))
    with scene.computing():
        for lending in ("0", "1"):
            scene.machine.agent.ask("write", _LEND, lending)
            time.sleep(_KEPT)
        scene.check_canary()
    return "it stands still, and goes on where it was: the OS may starve it, and that is all"


def _asking_meanwhile(scene: Inside, *words: object) -> dict[str, int]:
    """Make an attack; meanwhile ask what makes it wait and go on, in its kernel more than anywhere else.

    Raises Gained when it does not answer, or is wrong.
    """
    with concurrent.futures.ThreadPoolExecutor() as pool:
        made = pool.submit(scene.attack, *words)
        while not made.done():
            _ask(scene)
    _ask(scene)
    return made.result()


def _ask(scene: Inside) -> None:
    try:
        if scene.opened.tokenise(PROMPT) != scene.prompt:
            raise Gained("it took a text for another one")
    except (NotDone, PeerError) as error:
        raise Gained(f"it does not go on: {error}") from None


def count_what_it_does(scene: Inside) -> str:
    """Count the secure world's cycles with the PMU's counters of events."""
    with scene.computing():
        made = scene.attack("count", _ROUNDS)
    _lent(made)
    if not made["own"]:
        raise Pointless("the counter does not count the attacker's own cycles either")
    if made["lent"] > made["own"] * _COUNTED:
        raise Gained(f"{made['lent']} of {made['own']} in a million are counted")
    share = made["lent"] / made["own"]
    return f"EL3 has events counted in the normal world only: {share:.0%}, which is the way in and out"


def manage_power_meanwhile(scene: Inside) -> str:
    """Turn CPUs off, on and into standby while they compute; start them in memory that is not the OS's."""
    elsewhere = (HIDDEN, SECURE_RAM, scene.secure() + (1 << 40))
    with scene.computing():
        expect(scene.smc(_CPU_ON, 1, scene.own(), 0), _ALREADY_ON, "a CPU that is on was started")
        for state in ("0", "1") * 3:
            scene.machine.agent.ask("write", "/sys/devices/system/cpu/cpu1/online", state)
            scene.smc(_CPU_SUSPEND, 0, 0, 0)
            if scene.smc(_AFFINITY_INFO, 1, 0) != 1 - int(state):
                raise Pointless("the CPU is not as it was told to be")
            for entry in elsewhere:
                expect(scene.smc(_CPU_ON, 1, entry, 0), _INVALID_ADDRESS, f"a CPU was started at {entry:#x}")
        scene.check_canary()
    return "the secure world of a CPU waits until that is lent again, and is out of reach until then"


def _lent(made: dict[str, int]) -> None:
    """Raise unless RUN was answered as it may be, and the secure world has not ended."""
    if made["other"] or made["ended"]:
        raise Gained(f"{made['other']} calls were answered with nonsense, {made['ended']} with the end")
    if not made["runs"]:
        raise Pointless("no CPU was lent")
