"""The application's end, by a request that it cannot survive. Nothing else is attacked there any more."""

from __future__ import annotations

import time

from flexserve.attacks.attempt import Gained, Pointless
from flexserve.attacks.trustzone.inside.scene import Inside
from flexserve.attacks.trustzone.scene import until
from flexserve.errors import PeerError
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.ram import PAGE
from flexserve.tee_client.messages import MOST_PAYLOAD, Ask

_RUN = abi.SMC_BASE + abi.CALL_RUN
_TIMES = 3
_SOON, _LONG = 8.0, 60.0  # seconds
_LAST_WORDS = "the application faulted", "the secure world has ended"
_NONE = b"\xff" * 64


def have_it_fault(scene: Inside) -> str:
    """Have the application end, by too much text or by what is no message; look for what it leaves."""
    secure = scene.secure()
    if not any(scene.bytes_at(secure, PAGE)):
        raise Pointless("the page is empty to begin with")
    if scene.machine.agent.ask("flexmem")["ended"]:
        raise Pointless("it has ended before")
    scene.app.patience = _SOON
    try:
        for _ in range(_TIMES):
            scene.app.ask(Ask.TOKENISE, scene.opened.number, 0, payload=bytes(MOST_PAYLOAD))
        _say_no_message(scene)
        until(lambda: scene.machine.agent.ask("flexmem")["ended"], "the application survives")
    except PeerError:
        pass
    if scene.canaries():
        raise Gained("the application left its weights in memory")
    if any(scene.bytes_at(secure, PAGE)):
        raise Gained("a page of it was not overwritten")
    ended = scene.attack("smc", _RUN)
    if (ended["x0"], ended["x1"]) != (0, abi.RunAnswer.ENDED):
        raise Gained("the secure world was entered again")
    if not any(words in line for line in scene.machine.console() for words in _LAST_WORDS):
        raise Gained("nobody was told")
    _returned(scene)
    return "the secure OS unmaps it on all CPUs, overwrites what it had, says so, and is never entered again"


def _say_no_message(scene: Inside) -> None:
    """Write what is no message into the ring, as a hostile kernel can."""
    memory = scene.app.memory
    written = int.from_bytes(memory[:4], "little")
    area = 1 << ((len(memory) - PAGE) // 2).bit_length() - 1
    for number, byte in enumerate(_NONE):
        memory[PAGE + (written + number) % area] = byte
    memory[:4] = ((written + len(_NONE)) % (1 << 32)).to_bytes(4, "little")


def _returned(scene: Inside) -> None:
    def all_back() -> bool:
        pages = scene.machine.monitor().pages
        if sum(pages.values()) != scene.machine.ram_bytes:
            raise Gained("memory was lost")
        return not (pages["SECURE"] or pages["GRANTED"] or pages["RECALLING"])

    deadline = time.monotonic() + _LONG
    while not all_back():
        if time.monotonic() > deadline:
            raise Gained("the OS does not get its memory back")
        time.sleep(0.05)
    until(lambda: not scene.canaries(), "the canary is in RAM")
