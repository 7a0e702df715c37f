"""A kernel that starves the secure world and lies to it: a model gives a typed error, or the right words."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from flexserve.attacks.attempt import Gained, Pointless
from flexserve.attacks.target import MODEL, Target
from flexserve.attacks.trustzone.scene import CPUS, RAM_BYTES
from flexserve.emulator.build import Images
from flexserve.emulator.machine import Machine
from flexserve.errors import GrantRefusedError
from flexserve.harness.worlds import DrivenWorld
from flexserve.platforms.trustzone import abi

_PROMPT, _TOKENS = "Kato bime.", 8
_RESERVE = "/sys/module/flexmem/parameters/reserve_percent"
_ROUNDS = 3
_HUGE = 1 << 40  # pages


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """A machine, a secure world on it with its store, and what its model says when nobody interferes."""

    machine: Machine
    world: DrivenWorld
    expected: str
    target: Target

    @property
    def secret(self) -> DrivenWorld:
        """The secure world, as attacks on any platform call it."""
        return self.world

    @classmethod
    @contextlib.contextmanager
    def set(cls, images: Images, folder: Path) -> Iterator[Conversation]:
        """Boot, and ask the model once."""
        target = Target.make(folder)
        with Machine(images, ram_bytes=RAM_BYTES, cpus=CPUS) as machine:
            machine.agent.ask("load", "flexattack")
            with target.on(machine) as world:
                yield cls(machine, world, world.generate(MODEL, _PROMPT, _TOKENS).text, target)

    def ask(self) -> bool:
        """Ask again, with nothing in memory; return whether there was an answer.

        Raises Gained for a wrong one.
        """
        self.world.recall(None)
        try:
            text = self.world.generate(MODEL, _PROMPT, _TOKENS).text
        except GrantRefusedError:
            return False
        if text != self.expected:
            raise Gained("the model said something else")
        return True

    def attack(self, *words: object) -> dict[str, int]:
        """Have the attack module do something; return what it says."""
        return self.machine.agent.ask("attack", *map(str, words), seconds=60)

    def call(self, call: abi.Call, *arguments: int) -> dict[str, int]:
        """Make one of the monitor's calls; return all that it answers."""
        return self.attack("smc", abi.SMC_BASE + call, *arguments)


def starve(talk: Conversation) -> str:
    """Grant the secure world nothing; then run no driver at all."""
    before = talk.machine.agent.ask("read", _RESERVE)["text"].strip()
    talk.machine.agent.ask("write", _RESERVE, "100")
    _refused(talk, "nothing was granted")
    talk.machine.agent.ask("write", _RESERVE, before)
    with _no_driver(talk):
        _refused(talk, "nobody served it")
    _answered(talk)
    return (
        "waits are bounded and end in GrantRefusedError; with memory again the model says the same as before"
    )


def lie(talk: Conversation) -> str:
    """Answer for memory that was never granted, ask for more than there is, say so again and again."""
    with _no_driver(talk), _meanwhile(talk, _lie):
        _refused(talk, "it was lied to")
    _answered(talk)
    return "what was granted is what the monitor reports, whatever the OS says"


def take_back_meanwhile(talk: Conversation) -> str:
    """Take pages back while they are being handed over, and call the monitor at random."""
    with _meanwhile(talk, _take_back):
        answers = sum(talk.ask() for _ in range(_ROUNDS))
    _answered(talk)
    outcome = f"{answers} right answers and {_ROUNDS - answers} typed errors"
    return f"{outcome}: no page is used before the monitor has it SECURE"


def _refused(talk: Conversation, otherwise: str) -> None:
    if talk.ask():
        raise Pointless(f"the model answered although {otherwise}")


def _answered(talk: Conversation) -> None:
    if not talk.ask():
        raise Pointless("the model does not answer any more, with memory again and nobody in its way")


def _lie(talk: Conversation) -> None:
    """Serve one notice of the monitor's, as no driver should."""
    notice = talk.call(abi.Call.POLL)
    if notice["x1"] == abi.Notice.WANT:
        talk.call(abi.Call.ANSWER, notice["x2"], notice["x3"])
        talk.call(abi.Call.ANSWER, notice["x2"] + 1, _HUGE)
    talk.call(abi.Call.PRESSURE, _HUGE, secrets.randbits(32))


def _take_back(talk: Conversation) -> None:
    """Return what is granted and not yet used; then some random calls."""
    while (found := talk.attack("find", int(abi.PageState.GRANTED)))["ipa"]:
        talk.call(abi.Call.RETURN, found["ipa"], found["pages"])
    talk.attack("fuzz", "smc", 200, secrets.randbits(32))


@contextlib.contextmanager
def _no_driver(talk: Conversation) -> Iterator[None]:
    """Have no driver loaded for the length of the block. It leaves when it has everything back."""
    talk.world.recall(None)
    talk.machine.agent.ask("unload", "flexmem", seconds=60)
    yield
    talk.machine.agent.ask("load", "flexmem")


@contextlib.contextmanager
def _meanwhile(talk: Conversation, act: Callable[[Conversation], None]) -> Iterator[None]:
    """Do something over and over for the length of the block."""
    end = threading.Event()

    def go_on() -> None:
        while not end.is_set():
            act(talk)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        acting = pool.submit(go_on)
        try:
            yield
        finally:
            end.set()
        acting.result()
