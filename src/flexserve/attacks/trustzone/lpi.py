"""The interrupt controller, which reads and writes memory past Stage-2 and past the SMMU.

For message interrupts (LPIs) a redistributor has a table in RAM of what is pending, a bit for each, and
clears the bit of an interrupt that is taken (driver/flexattack/lpi.c). Each attack is made while protection
is on, and with tables that were given to it while it was off.
"""

from __future__ import annotations

import contextlib
import secrets
import struct
import time
from collections.abc import Iterator

from flexserve.attacks.attempt import Gained, Pointless
from flexserve.attacks.trustzone.scene import HIDDEN, Scene, demand, until
from flexserve.attacks.trustzone.switching import while_off
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.ram import BASE, PAGE

_STATES = HIDDEN + abi.HIDDEN_STATES
_TABLE = 64 * 1024  # bytes from one place where a table may begin to the next
_FIRST = 1024  # the byte of a table where it begins to count
_SECURE_BIT = 1  # of a page's state: clear it, and SECURE is NORMAL
_KNOWN = b"\x81" + bytes(31)  # what the attacker has in its own page, for it to be read
_SOON = 10.0  # seconds
_REASON = "EL2 answers in place of the redistributors, which have no LPIs; EL3 ends those that were left on"


def read_by_lpi(scene: Scene) -> str:
    """Have the interrupt controller read a secure page, as its table of what is pending."""
    block = _controlled(scene)
    for early in (False, True):
        with _secure_page(scene, block, block, 0, early=early) as canary:
            if canary in _taken(scene):
                raise Gained("bytes of a secure page")
    return _REASON


def alter_by_lpi(scene: Scene) -> str:
    """Have the interrupt controller clear bits of a secure page."""
    block = _controlled(scene)
    for early in (False, True):
        with _secure_page(scene, block, block, 0, early=early) as canary:
            _taken(scene)
            if scene.bytes_at(block + PAGE, len(canary)) != canary:
                raise Gained("a secure page was altered")
    return _REASON


def flip_by_lpi(scene: Scene) -> str:
    """Have the interrupt controller make a secure page NORMAL, in the monitor's own table."""
    block = _controlled(scene)
    state = (block + PAGE - BASE) // PAGE
    table, only = _STATES + state // _TABLE * _TABLE, state % _TABLE * 8 + _SECURE_BIT
    for early in (False, True):
        with _secure_page(scene, block, table, only, early=early):
            _taken(scene)
            if scene.state(block + PAGE) is not abi.PageState.SECURE:
                raise Gained("the page is the attacker's, unscrubbed, by the monitor's own table")
    return _REASON


# ---- their tools ------------------------------------------------------------------------------------------


def _controlled(scene: Scene) -> int:
    """Return the address of 64 KiB of the attacker's own, which it reads in this way unprotected."""
    block = scene.attack("lpi-block")["ipa"]
    with _nothing_held(scene):
        deadline, seen = time.monotonic() + _SOON, b""
        while seen != _KNOWN and time.monotonic() < deadline:  # a call of the driver in between ends it
            _arm_while_off(scene, block, 0)
            scene.put(block + PAGE, _KNOWN)
            seen = _taken(scene)
    if seen != _KNOWN or scene.bytes_at(block + PAGE, len(_KNOWN)) != bytes(len(_KNOWN)):
        raise Pointless(
            f"while protection is off it does not use the attacker's own page either ({seen.hex()})"
        )
    return block


@contextlib.contextmanager
def _nothing_held(scene: Scene) -> Iterator[None]:
    """Let protection go off meanwhile."""
    scene.give_back()
    try:
        yield
    finally:
        scene.hold()


def _arm_while_off(scene: Scene, table: int, only: int) -> None:
    """Have one interrupt pending already: when that is taken, the table is read again."""
    while_off(scene, "poke", "table", table + (only // 64 * 8 if only else _FIRST), (1 << 64) - 1)
    if not while_off(scene, "lpi-arm", table, only)["on"]:
        raise Pointless("there are no LPIs while protection is off either")


def _taken(scene: Scene) -> bytes:
    """Take what is pending; return the first bytes of the second page of the table, as they were then."""
    made = scene.attack("lpi-take", PAGE)
    return struct.pack("<4Q", *(made[f"word{n}"] % 2**64 for n in range(4)))


@contextlib.contextmanager
def _secure_page(scene: Scene, block: int, table: int, only: int, *, early: bool) -> Iterator[bytes]:
    """Have the second page of the block SECURE, with a canary in it, and the table armed.

    With `early` it was armed while protection was off, and before the page was handed over.
    """
    page, canary = block + PAGE, secrets.token_bytes(32)
    if early:
        with _nothing_held(scene):
            _arm_while_off(scene, table, only)
    scene.pages.trim(0)
    demand(scene.call(abi.Call.GRANT, page, 1), abi.Status.OK, "a page of the attacker's own was refused")
    runs = scene.pages.take(1)
    if runs[0].ipa != page:
        raise Pointless("the secure world took another page")
    scene.put(page, canary)
    if not early:
        scene.attack("lpi-arm", table, only)
    yield canary
    scene.pages.keep(runs)
    scene.pages.trim(0)
    until(lambda: scene.call(abi.Call.TAKE, page, 1) == abi.Status.OK, "the page does not come back")
