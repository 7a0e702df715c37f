"""Protection that is switched while the secure world serves. While it is off, EL2's memory is the OS's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from flexserve.attacks.attempt import Gained, Pointless
from flexserve.attacks.trustzone.inside.scene import Inside
from flexserve.attacks.trustzone.scene import RAM_BYTES, demand, until
from flexserve.platforms.trustzone import abi, layout
from flexserve.platforms.trustzone.mailbox import Ring
from flexserve.platforms.trustzone.ram import Ram
from flexserve.tee_client.messages import Ask, Status

_TOGGLES = 20
_FORGING = 1.0  # seconds
_ROUTE = 0x0800_0000 + 0x6000 + 8 * abi.DOORBELL_INTID  # GICD_IROUTER: the CPU that hears the doorbell
_NOWHERE, _FIRST_CPU = 0xFF, 0


def toggle_protection(scene: Inside) -> str:
    """Switch protection off and on while the secure world serves; while it is off, play the monitor."""
    toggled = 0
    for _ in range(_TOGGLES):
        for call in (abi.Call.RELAX, abi.Call.VERSION):
            toggled += scene.call(call) == abi.Status.OK
            if scene.app.ask(Ask.TOKENISE, 99, 0, payload=b"x").status is not Status.BAD:
                raise Gained("it answered for a model that is not there")
    if toggled < _TOGGLES:
        raise Pointless(f"protection was switched {toggled} times only")
    _forge(scene)
    demand(scene.call(abi.Call.VERSION), abi.Status.OK, "protection did not come back")
    return "EL3 lends CPUs by itself, so EL2 may come and go; what was read of it meanwhile is not believed"


def _forge(scene: Inside) -> None:
    """Have it ask for memory that no monitor gives: protection is off, and the driver does not hear it."""
    block = scene.attack("block")["ipa"]
    scene.attack("poke", "device", _ROUTE, _NOWHERE)
    until(lambda: scene.call(abi.Call.RELAX) == abi.Status.OK, "protection does not go off")
    asking = threading.Thread(target=_ask_for_memory, args=(scene,))
    asking.start()
    try:
        forged = _play_the_monitor(scene, block, asking.is_alive)
    finally:
        scene.attack("poke", "device", _ROUTE, _FIRST_CPU)
        asking.join()
    if forged:
        raise Gained(f"it believed {forged} answers that the monitor had not given")
    if not scene.machine.monitor().pages["SECURE"]:
        raise Pointless("it does not get memory once the driver hears it, either")


def _ask_for_memory(scene: Inside) -> None:
    scene.app.do(Ask.GRANT, 1)


def _play_the_monitor(scene: Inside, block: int, asking: Callable[[], bool]) -> int:
    """Answer its commands as if the OS had granted it a block, while it asks; return how many there were.

    What the monitor's memory holds is written past the guest, whose kernel could write it now, too.
    """
    mailbox = Ram(scene.machine.ram_fd).window(layout.mailbox_offset(RAM_BYTES), layout.MAILBOX_BYTES)
    head, tail, slots = abi.OFFSET_COMMAND_HEAD, abi.OFFSET_COMMAND_TAIL, abi.HEADER_BYTES
    commands = Ring(mailbox, head=head, tail=tail, slots=slots)
    head, tail, slots = abi.OFFSET_EVENT_HEAD, abi.OFFSET_EVENT_TAIL, abi.HEADER_BYTES + layout.RING_BYTES
    events = Ring(mailbox, head=head, tail=tail, slots=slots)
    forged, deadline = 0, time.monotonic() + _FORGING
    while asking() and time.monotonic() < deadline:
        while (command := commands.take()) is not None:
            for event in _forged(command, block):
                events.put(*event)
            forged += 1
        time.sleep(0.001)
    return 0 if asking() else forged


def _forged(command: tuple[int, int, int, int], block: int) -> list[tuple[int, ...]]:
    """Return the events by which the monitor would answer a command."""
    kind, a, b, c = command
    match kind:
        case abi.Command.ATTACH:
            return [(abi.Event.ATTACHED, a)]
        case abi.Command.WANT:
            return [(abi.Event.GRANTED, block, b), (abi.Event.ANSWER, a, b)]
        case _:
            return [(abi.Event.DONE, c, abi.Status.OK)]
