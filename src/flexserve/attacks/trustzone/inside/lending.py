"""CPU time that is lent with malice: hostile registers, all CPUs, interrupts, a program, a core that is kept.

The secure world computes meanwhile, and must say what it says when nobody interferes.
"""

from __future__ import annotations

import secrets
import signal
import time

from flexserve.attacks.attempt import Gained, Pointless
from flexserve.attacks.trustzone.inside.scene import Inside
from flexserve.attacks.trustzone.scene import HIDDEN, SECURE_RAM, demand, expect
from flexserve.errors import PeerError
from flexserve.platforms.trustzone import abi
from flexserve.tee_client.messages import Ask, Status

RUN = abi.SMC_BASE + abi.CALL_RUN
_ROUNDS = 200
_STORM_MS, _STARVE_MS = 1500, 1500
_TOGGLES = 20
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
    """Lend all CPUs at once, and interrupt them at any instruction, all the time."""
    with scene.computing():
        made = scene.attack("run-storm", _STORM_MS, secrets.randbits(31))
        scene.check_canary()
    _lent(made)
    if not made["interrupted"]:
        raise Pointless("nothing was interrupted")
    return f"it goes on where it was, {made['interrupted']} times; the answers are the same"


def lend_in_an_interrupt(scene: Inside) -> str:
    """Lend all CPUs again behind interrupts of the driver's threads, which lend them."""
    with scene.computing():
        made = scene.attack("run-nested", _ROUNDS)
        scene.check_canary()
    _lent(made)
    return "a CPU has one secure world, which does not see who lends it"


def lend_from_a_program(scene: Inside) -> str:
    """Have a program of EL0 make RUN."""
    _lent(scene.attack("run-nested", 1))
    job = scene.run("call", RUN)
    came = job["result"]
    if not isinstance(came, dict) or came["signal"] != signal.SIGILL:
        raise Gained("a program's call reached somebody")
    return "the CPU knows no such instruction at EL0: SIGILL"


def toggle_protection(scene: Inside) -> str:
    """Switch protection off and on while the secure world serves requests. It holds nothing yet."""
    toggled = 0
    for _ in range(_TOGGLES):
        for call in (abi.Call.RELAX, abi.Call.VERSION):
            toggled += scene.call(call) == abi.Status.OK
            if scene.app.ask(Ask.TOKENISE, 99, 0, payload=b"x").status is not Status.BAD:
                raise Gained("it answered for a model that is not there")
            if scene.app.do(Ask.POOL).values[0]:
                raise Gained("it has memory that nobody granted")
    if toggled < _TOGGLES:
        raise Pointless(f"protection was switched {toggled} times only")
    demand(scene.call(abi.Call.VERSION), abi.Status.OK, "protection did not come back")
    return "EL3 lends CPUs by itself, so EL2 may come and go; what was read of it meanwhile is not believed"


def starve_a_core(scene: Inside) -> str:
    """Keep one of two cores for a while, in the midst of an answer of two threads."""
    began = time.monotonic()
    scene.answer()
    usual = time.monotonic() - began
    with scene.computing() as talk:
        before = talk.answers
        began = time.monotonic()
        scene.attack("starve", 1, _STARVE_MS)
        starved = time.monotonic() - began
        meanwhile = talk.answers - before
        scene.check_canary()
    if starved < _STARVE_MS / 1000:
        raise Pointless("the core was not kept")
    slower = f"{meanwhile} answers in {starved:.1f} s of which each takes {usual:.2f} s otherwise"
    return f"it waits and goes on ({slower}): the OS may starve it, and that is all"


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
    with scene.computing():
        for entry in (HIDDEN, SECURE_RAM, scene.secure() + (1 << 40)):
            expect(scene.smc(_CPU_ON, 1, entry, 0), _INVALID_ADDRESS, f"a CPU was started at {entry:#x}")
        expect(scene.smc(_CPU_ON, 1, scene.own(), 0), _ALREADY_ON, "a CPU that is on was started")
        for state in ("0", "1") * 3:
            scene.machine.agent.ask("write", "/sys/devices/system/cpu/cpu1/online", state)
            scene.smc(_CPU_SUSPEND, 0, 0, 0)
            if scene.smc(_AFFINITY_INFO, 1, 0) != 1 - int(state):
                raise Pointless("the CPU is not as it was told to be")
        scene.check_canary()
    return "the secure world of a CPU waits until that is lent again, and is out of reach until then"


def keep_all_cpus(scene: Inside) -> str:
    """Lend nothing at all; then go on."""
    lend = "/sys/kernel/debug/flexmem/lend"
    with scene.computing():
        scene.machine.agent.ask("write", lend, "0")
        before = scene.canaries()
        time.sleep(_STARVE_MS / 1000)
        held = scene.canaries()
        scene.machine.agent.ask("write", lend, "1")
        try:
            scene.check_canary()
        except PeerError:
            raise Gained("it did not go on") from None
    if not before or held != before:
        raise Gained("its memory was not what it left")
    return "it stands still, and goes on as if nothing had been"


def _lent(made: dict[str, int]) -> None:
    """Raise unless RUN was answered as it may be, and the secure world has not ended."""
    if made["other"] or made["ended"]:
        raise Gained(f"{made['other']} calls were answered with nonsense, {made['ended']} with the end")
    if not made["runs"]:
        raise Pointless("no CPU was lent")
