"""Calls of the monitor: of what is not one's own, again, at random, and on two CPUs at once."""

from __future__ import annotations

import secrets
import threading
import time

from flexserve.attacks.attempt import Gained, Pointless
from flexserve.attacks.trustzone.scene import HIDDEN, RAM_BYTES, UART, Attacked, Scene, demand, expect
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.exchange import Commit, Recall
from flexserve.platforms.trustzone.ram import BASE, PAGE

_ROUNDS = 10_000  # random calls by each conduit
_RACES = 8  # that the attacker may lose before it gives up
_RACE_MS = 4000
_DRIVER = 0.5  # seconds in which it takes what it can


def grant_what_is_not_its_own(scene: Attacked) -> str:
    """Grant a page twice; grant the monitor's pages, a device's, addresses outside of RAM."""
    own, grant = scene.own(), abi.Call.GRANT
    demand(scene.call(grant, own, 1), abi.Status.OK, "a page of its own was refused")
    expect(scene.call(grant, own, 1), abi.Status.DENIED, "a page was granted twice")
    demand(scene.call(abi.Call.RETURN, own, 1), abi.Status.OK, "an unused page was not returned")
    for ipa, pages in ((HIDDEN, 1), (HIDDEN - PAGE, 2), (BASE + RAM_BYTES - PAGE, 1), (scene.secure(), 1)):
        expect(scene.call(grant, ipa, pages), abi.Status.DENIED, f"{ipa:#x} was granted")
    malformed = (
        (UART, 1),
        (0, 1),
        (BASE + RAM_BYTES, 1),
        (own + 1, 1),
        (own, 0),
        (own, 513),
        (own, 2**64 - 1),
    )
    for ipa, pages in malformed:
        expect(scene.call(grant, ipa, pages), abi.Status.INVALID, f"{ipa:#x}, {pages} pages was granted")
    return "the monitor looks into its own table of page states before it does anything"


def take_what_is_not_offered(scene: Attacked) -> str:
    """Take, or return, a page that the secure world uses, or that the attacker has."""
    own, secure = scene.own(), scene.secure()
    for call in (abi.Call.TAKE, abi.Call.RETURN):
        expect(scene.call(call, secure, 1), abi.Status.DENIED, f"{call.name} of a secure page")
        expect(scene.call(call, own, 1), abi.Status.DENIED, f"{call.name} of a page that it has")
    scene.check_canary()
    return "there is no transition from SECURE to the OS: only the secure world offers"


def take_before_and_again(scene: Scene) -> str:
    """Take pages the moment they are offered, before the driver does; look at once; take them again."""
    for _ in range(_RACES):
        last = _last_secure_run(scene)
        releasing = threading.Thread(target=scene.release)
        releasing.start()
        made = scene.attack("race-take", *last, _RACE_MS)
        _take_the_rest(scene)
        releasing.join()
        expect(made["again"], abi.Status.DENIED, "pages were taken twice")
        if found := scene.canaries():
            raise Gained(f"the canary is in RAM {found} times")
        scene.hold()
        if made["taken"]:
            break
    else:
        raise Pointless("the driver was always first")
    if made["words"]:
        raise Gained(f"{made['words']} words were there still")
    return "a page that was taken is NORMAL, and cannot be taken; it was zeros before it could be seen"


def replay_old_grant(scene: Scene) -> str:
    """Say again what was said of pages that came back: calls of the OS, and the secure world's commands."""
    own, secure = scene.own(), scene.secure()
    demand(scene.call(abi.Call.GRANT, own, 1), abi.Status.OK, "a page of its own was refused")
    demand(scene.call(abi.Call.RETURN, own, 1), abi.Status.OK, "an unused page was not returned")
    scene.release()
    for ipa in (own, secure):
        for call in (abi.Call.RETURN, abi.Call.TAKE):
            expect(scene.call(call, ipa, 1), abi.Status.DENIED, f"an old {call.name} was carried out")
        scene.say(Commit(ipa, 1, next(scene.serials)), Recall(ipa, 1, next(scene.serials)))
        if scene.state(ipa) is not abi.PageState.NORMAL or scene.attack("peek", "direct", ipa)["fault"]:
            raise Gained(f"an old message changed the state of {ipa:#x}")
    scene.hold()
    return "each call and each command is judged by the page's present state alone"


def call_at_random(scene: Attacked) -> str:
    """Call the monitor ten thousand times with hostile registers, by SMC and by HVC."""
    before = scene.machine.monitor().pages
    for conduit in ("smc", "hvc"):
        found = scene.attack("fuzz", conduit, _ROUNDS, secrets.randbits(32))
        if found["fault"] or found["rounds"] != _ROUNDS:
            raise Gained(f"the machine lost its way after {found['rounds']} calls ({conduit})")
    if scene.machine.monitor().pages != before:
        raise Gained("pages changed hands")
    scene.check_canary()
    return f"{2 * _ROUNDS} calls, each answered with a status, and no page changed hands"


def race_two_cpus(scene: Scene) -> str:
    """Write to a page on one CPU while the other grants it; grant one page on both at once."""
    touched = scene.attack("race-touch", 3_000)
    if touched["leaks"]:
        raise Gained(f"{touched['leaks']} writes reached a granted page")
    if not (touched["writes"] and touched["faults"]):
        raise Pointless("the two CPUs did not meet")
    doubled = scene.attack("race-double", 500)
    if doubled["grants"] or doubled["returns"]:
        raise Gained(f"both won, or none, {doubled['grants'] + doubled['returns']} times")
    return f"unmap, flush, then publish, under one lock: {touched['faults']} writes came too late, none after"


def _last_secure_run(scene: Scene) -> tuple[int, int]:
    """Return the address and pages of the last run of SECURE pages: the driver comes to it last."""
    last, skip = (0, 0), 0
    while (found := scene.attack("find", int(abi.PageState.SECURE), skip))["ipa"]:
        last, skip = (found["ipa"], found["pages"]), skip + 1
    if not last[0]:
        raise Pointless("no page is SECURE")
    return last


def _take_the_rest(scene: Scene) -> None:
    """Take what the driver asked for in vain, because part of it was taken already."""
    time.sleep(_DRIVER)
    while (found := scene.attack("find", int(abi.PageState.RECALLING)))["ipa"]:
        if scene.call(abi.Call.TAKE, found["ipa"], found["pages"]) == abi.Status.DENIED:
            continue  # the driver was there
