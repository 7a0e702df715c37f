"""The driver is dumped and killed, and the machine reset, cut off from power and switched off, in mid-answer.

Each next attack starts a driver that restores the model from its sealed image, and the conversation from its
sealed KV, and must hear the same words.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from flexserve.attacks.attempt import Gained, Pointless
from flexserve.attacks.target import MODEL, Target
from flexserve.attacks.trustzone.inside.client import Client
from flexserve.attacks.trustzone.inside.driver import Driver
from flexserve.attacks.trustzone.inside.dump import Secrets, anywhere_in_ram, in_process, places
from flexserve.attacks.trustzone.inside.hands import ResetButton
from flexserve.attacks.trustzone.scene import CPUS, RAM_BYTES
from flexserve.emulator.build import Images
from flexserve.emulator.machine import Machine
from flexserve.errors import NormalWorldError
from flexserve.harness.inner import SealedFile
from flexserve.trusted.store.keys import DeviceKey

# Words that nobody else says, and that no other process makes: the driver imports this module, too.
PROMPT = f"Kanarivogel singt {secrets.token_hex(16)}"
_SYSTEM_OFF, _SYSTEM_RESET = 0x8400_0008, 0x8400_0009  # PSCI
_BOOT, _GONE = 120.0, 30.0  # seconds
_ENOUGH = 32  # bytes of an answer to know it by
_MOMENT = 0.6  # seconds: somewhere in these it is ended


@dataclasses.dataclass(slots=True)
class Driven:
    """A machine that can be ended and started again, its driver, and what must not be found."""

    images: Images
    target: Target
    file: SealedFile
    folder: Path
    machine: Machine
    driver: Driver
    button: ResetButton
    answer: str  # of PROMPT, as `ask` of the driver says it
    dice: random.Random
    _stack: contextlib.ExitStack

    @classmethod
    @contextlib.contextmanager
    def set(cls, images: Images, folder: Path, *, seed: int) -> Iterator[Driven]:
        """Boot, have the model opened, ask it, and have the conversation kept."""
        target = Target.make(folder)
        file = SealedFile.read(target.root / f"models/{MODEL}.flex", DeviceKey.load(target.key))
        with contextlib.ExitStack() as stack:
            button = stack.enter_context(ResetButton.made())
            machine = stack.enter_context(_machine(images, target, button))
            driver = stack.enter_context(Driver(machine, file, folder / "kept"))
            driver.say("open")
            _, answer = driver.say(f"ask {PROMPT}").split()
            driver.say("keep")
            dice = random.Random(seed)  # noqa: S311  # of moments, not of secrets
            yield cls(images, target, file, folder, machine, driver, button, answer, dice, stack)

    @property
    def forbidden(self) -> Secrets:
        """What may be found nowhere: weights and keys."""
        return {**self._weights, "a key of the device": self.target.secrets(), **self._models_key}

    @property
    def _weights(self) -> Secrets:
        return {"the weights": [self.target.canary]}

    @property
    def _models_key(self) -> Secrets:
        manifest = self.file.manifest
        wrapped = bytes.fromhex(manifest.wrapped_key)
        return {"the model's key": [DeviceKey.load(self.target.key).unwrap(manifest.id_bytes, wrapped)]}

    def weights_in_ram(self) -> bool:
        """Whether the weights are anywhere in RAM."""
        return bool(anywhere_in_ram(self._weights, self.machine.ram_fd))

    def key_in_machine(self) -> bool:
        """Whether the model's key is in what plays the machine, which has its secure RAM, too."""
        return bool(in_process(self._models_key, self.machine.pid))

    def look(self, *, pid: int | None = None) -> None:
        """Raise Gained when anything forbidden is in reach."""
        for name, where in places(
            self.forbidden, pid=pid, machine=self.machine, folders=(self.folder / "kept", self.target.root)
        ).items():
            if where:
                raise Gained(f"{name}: found in {' and '.join(where)}")

    def moment(self) -> None:
        """Have the driver ask for ever, if it lives, and let a random time pass."""
        if self.driver.process.poll() is not None:
            return
        self.driver.say(f"go on {PROMPT}")
        time.sleep(self.dice.random() * _MOMENT)

    def restored(self) -> None:
        """Start another driver, which goes on from what was kept. Raises Gained for other words."""
        self.driver.kill()
        self.driver = self._stack.enter_context(Driver(self.machine, self.file, self.folder / "kept"))
        how = self.driver.say("restore")
        if how != "DONE":
            raise Pointless(f"the conversation is not resumed: {how}")
        to_compute, answer = self.driver.say(f"ask {PROMPT}").split()
        if answer != self.answer:
            raise Gained("the conversation goes on with other words")
        if to_compute != "1":
            raise Pointless(f"what was kept is not used: {to_compute} tokens to compute")

    def start_again(self, ram: int) -> None:
        """Have another machine with the RAM that one left."""
        self.machine = self._stack.enter_context(_machine(self.images, self.target, self.button, ram=ram))


def dump_everything(scene: Driven) -> str:
    """Dump the driver's process, all RAM that is not SECURE, and storage; look for weights and keys."""
    scene.driver.say(f"ask {PROMPT}")
    scene.look(pid=scene.driver.pid)
    words = {"the prompt": [PROMPT.encode()], "the answer": [bytes.fromhex(scene.answer)[:_ENOUGH]]}
    found = places(words, pid=scene.driver.pid, machine=scene.machine, folders=(scene.folder / "kept",))
    for name, where in found.items():
        if "storage" in where:
            raise Gained(f"{name} is in a file")
        if "RAM" not in where or "the process" not in where:
            raise Pointless(f"not even {name} was found, which passed there unsealed ({where})")
    return "no weights and no key; of an unsealed request the prompt and the answer, which its driver has"


def dump_a_sealed_conversation(scene: Driven) -> str:
    """Dump the same after a sealed request; look for its words and its answer's, too."""
    words = f"Kanarivogel schweigt {secrets.token_hex(16)}"
    client = Client(scene.driver, scene.target.key.read_bytes())
    answer = client.ask(words)
    if len(answer) < _ENOUGH // 2:
        raise Pointless("the answer is too short to be known by")
    sealed = {"the prompt": [words.encode()], "the answer": [answer.encode()]}
    scene.look(pid=scene.driver.pid)
    found = places(
        sealed,
        pid=scene.driver.pid,
        machine=scene.machine,
        folders=(scene.folder / "kept", scene.target.root),
    )
    for name, where in found.items():
        if where:
            raise Gained(f"{name}: found in {' and '.join(where)}")
    return "its words are in the clear at S-EL0 only, and at the client"


def ask_for_sealed_words(scene: Driven) -> str:
    """Ask the application itself for words of a sealed request: its tokens, its KV, and as its owner."""
    words = f"Kanarivogel schweigt {secrets.token_hex(16)}"
    body = Client(scene.driver, scene.target.key.read_bytes()).request(words).body
    for each in scene.driver.say(f"spy {body.hex()} {words}").split():
        name, _, status = each.partition(":")
        if status not in ("BAD", "DAMAGED"):
            raise Gained(f"{name}: {status}")
    return "its tokens leave sealed only, its KV is sealed for its owner, and the OS cannot ask as that"


def reset_in_the_midst(scene: Driven) -> str:
    """Reset the machine while it answers, and go on from what was kept."""
    if not scene.weights_in_ram():
        raise Pointless("the weights are not in RAM to begin with")
    scene.moment()
    scene.machine.agent.ask("load", "flexattack")
    with contextlib.suppress(NormalWorldError):  # what comes is no answer, but a guest that is up again
        scene.machine.agent.ask("attack", "smc", str(_SYSTEM_RESET), seconds=_BOOT)
    if scene.weights_in_ram():
        raise Gained("the weights are in RAM after the reset")
    scene.restored()
    return "EL3 ends the secure world and overwrites RAM; what was sealed goes on, with the same words"


def kill_the_driver(scene: Driven) -> str:
    """Kill the process that drives it while it answers; look for what is left."""
    scene.moment()
    scene.driver.process.send_signal(signal.SIGKILL)
    scene.driver.process.wait()
    scene.look()
    pages = scene.machine.monitor().pages
    if sum(pages.values()) != scene.machine.ram_bytes or not pages["SECURE"]:
        raise Gained("pages were lost, or given up, with the driver")
    return "the application waits for messages; what is SECURE stays SECURE"


def lose_power(scene: Driven) -> str:
    """Cut the machine off from power, and start another one with the RAM as it was left."""
    scene.moment()
    ram = os.dup(scene.machine.ram_fd)
    try:
        os.kill(scene.machine.pid, signal.SIGKILL)
        _await_end(scene.machine)
        if not scene.weights_in_ram():
            raise Pointless("the weights were not in RAM to begin with")
        scene.start_again(ram)
    finally:
        os.close(ram)
    if scene.weights_in_ram():
        raise Gained("the weights are in RAM when the OS runs again")
    scene.restored()
    return "EL3 overwrites all of RAM before the OS's first instruction; what was sealed goes on"


def switch_off_in_the_midst(scene: Driven) -> str:
    """Switch the machine off while it answers; look at what is in its RAM, and in its secure RAM."""
    if not scene.weights_in_ram() or not scene.key_in_machine():
        raise Pointless("the weights are not in RAM to begin with, or their key is not in the secure one")
    scene.machine.agent.ask("load", "flexattack")
    scene.moment()
    with contextlib.suppress(NormalWorldError):
        scene.machine.agent.ask("attack", "smc", str(_SYSTEM_OFF), seconds=_GONE)
    scene.button.await_end()
    if scene.weights_in_ram():
        raise Gained("the weights are in RAM when the machine is off")
    if scene.key_in_machine():
        raise Gained("their key is in secure RAM when the machine is off")
    scene.button.let_go()
    _await_end(scene.machine)
    return "EL3 ends the secure world and overwrites its RAM, EL2 what was SECURE, and then it goes off"


ATTACKS = (
    dump_everything,
    dump_a_sealed_conversation,
    ask_for_sealed_words,
    reset_in_the_midst,
    kill_the_driver,
    lose_power,
    switch_off_in_the_midst,
)


def _machine(images: Images, target: Target, button: ResetButton, *, ram: int | None = None) -> Machine:
    return Machine(
        images,
        ram_bytes=RAM_BYTES,
        cpus=CPUS,
        resets=True,
        secret=target.key.read_bytes(),
        ram=ram,
        emulator=str(button.emulator),
    )


def _await_end(machine: Machine) -> None:
    deadline = time.monotonic() + _GONE
    while machine.alive:
        if time.monotonic() > deadline:
            raise Pointless("the machine does not end")
        time.sleep(0.02)
