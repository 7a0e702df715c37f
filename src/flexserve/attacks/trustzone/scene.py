"""The machine under attack: its kernel's hands, and eyes that see all of RAM.

The guest's kernel runs a module that attacks (driver/flexattack). This process can see all of RAM, so it
knows what the attacker got. In a `Scene` it also plays the secure world, and holds pages with a canary. What
the monitor is said to have stopped is what it counted itself as stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from flexserve.attacks.attempt import Gained, Pointless
from flexserve.emulator.build import Images
from flexserve.emulator.machine import Machine
from flexserve.platforms.ports import Arena
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.exchange import Command, Event
from flexserve.platforms.trustzone.guest_pages import GuestPages, Subscriber
from flexserve.platforms.trustzone.layout import (
    hidden_offset,
    mailbox_offset,
    npu_control_offset,
    states_offset,
)
from flexserve.platforms.trustzone.mailbox import Mailbox
from flexserve.platforms.trustzone.ram import BASE, PAGE, Ram
from flexserve.platforms.trustzone.secure_memory import TrustZoneMemory
from flexserve.units import MIB

RAM_BYTES, CPUS = 512 * MIB, 2
SLOT = 7  # of the copying device, on the PCI bus
LINE = "spare"  # of a second virtio-serial, of which nothing else makes use
DEVICES = (
    f"lsi53c895a,addr={SLOT}",  # a controller that copies memory as it is told
    "virtio-serial-pci,iommu_platform=on,disable-legacy=on,id=more",
    f"virtconsole,chardev={LINE},bus=more.0",
)

FAULT = -14  # EFAULT: what an access that was stopped is reported as
MARK = 0x6B636174
HIDDEN = BASE + hidden_offset(RAM_BYTES)
UART, SMMU, FW_CFG = 0x0900_0000, 0x0905_0000, 0x0902_0000
SECURE_RAM, SECURE_UART = 0x0E00_0000, 0x0904_0000

_SECRET = 8 * MIB
_SOON = 5.0  # seconds
_LONG = 60.0


class Audience(Subscriber):
    """Passes what the monitor tells on to the NPU of the attack under way: each has one of its own."""

    def __init__(self) -> None:
        self.npu = Subscriber()

    def hear(self, event: Event) -> None:
        """Pass an event on."""
        self.npu.hear(event)

    def needs_attachment(self) -> bool:
        """Return whether the NPU needs it."""
        return self.npu.needs_attachment()


@dataclasses.dataclass(slots=True)
class Attacked:
    """A booted machine whose secure world holds a canary: its kernel's hands, and eyes on all of RAM."""

    machine: Machine
    mailbox: Mailbox
    canary: bytes

    def hold(self) -> None:
        """Have secure memory that contains the canary."""
        raise NotImplementedError

    def release(self) -> None:
        """Have the secure world give back all memory that contains it, and wait until the OS has it."""
        raise NotImplementedError

    def check_canary(self) -> None:
        """Raise Gained when secure memory is not what the secure world wrote."""
        raise NotImplementedError

    def state(self, ipa: int) -> abi.PageState:
        """Return the state of a page, by the monitor's own table."""
        return abi.PageState(self.mailbox.states[(ipa - BASE) // PAGE])

    # ---- the attacker's hands -------------------------------------------------------------------------

    def attack(self, *words: object, seconds: float = _LONG) -> dict[str, int]:
        """Have the attack module do something; return what it says."""
        return self.machine.agent.ask("attack", *map(str, words), seconds=seconds)

    def smc(self, function: int, *arguments: int) -> int:
        """Call the monitor; return the status."""
        value = self.attack("smc", function, *arguments)["x0"] % 2**64
        return value - 2**64 if value >= 2**63 else value

    def call(self, call: abi.Call, *arguments: int) -> int:
        """Make one of the monitor's calls; return the status."""
        return self.smc(abi.SMC_BASE + call, *arguments)

    def run(self, program: str, *words: object) -> dict[str, Any]:
        """Have a program of the guest do something; return what came of it."""
        return self.machine.agent.ask("run", program, *map(str, words), seconds=_LONG)

    def own(self) -> int:
        """Return the address of a page of the attacker's own."""
        return self.attack("own")["ipa"]

    def secure(self) -> int:
        """Return the address of a SECURE page."""
        ipa = self.attack("find", int(abi.PageState.SECURE))["ipa"]
        if not ipa:
            raise Pointless("no page is SECURE")
        return ipa

    # ---- what the attacker got ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def stopped(self, what: str) -> Iterator[None]:
        """Raise Pointless unless the monitor counts that it stopped something within the block."""
        before = self.mailbox.faults
        yield
        if self.mailbox.faults == before:
            raise Pointless(f"it was not the monitor that stopped this ({what})")

    def expect_fault(self, what: str, *words: object) -> None:
        """Make an attack that must end in a fault. Raises Gained when it does not."""
        with self.stopped(what):
            if self.attack(*words)["fault"] != FAULT:
                raise Gained(f"a page was {what}")

    def bytes_at(self, ipa: int, length: int) -> bytes:
        """Return what is in RAM at an address, within a page."""
        page, offset = divmod(ipa - BASE, PAGE)
        with Ram(self.machine.ram_fd).window(page * PAGE, PAGE) as view:
            return bytes(view[offset : offset + length])

    def word(self, ipa: int) -> bytes:
        """Return the 8 bytes that are in RAM at an address."""
        return self.bytes_at(ipa, 8)

    def put(self, ipa: int, data: bytes) -> None:
        """Write to a page, as the secure world."""
        page, offset = divmod(ipa - BASE, PAGE)
        with Ram(self.machine.ram_fd).window(page * PAGE, PAGE) as view:
            view[offset : offset + len(data)] = data

    def canaries(self) -> int:
        """Return how often the canary is in RAM, wherever that is."""
        with Ram(self.machine.ram_fd).window(0, self.machine.ram_bytes) as view:
            return len(re.findall(re.escape(self.canary), view))


@dataclasses.dataclass(slots=True)
class Scene(Attacked):
    """A machine whose secure world is played here: it holds `arena`, full of the canary."""

    memory: TrustZoneMemory
    pages: GuestPages
    arena: Arena
    core: bytes  # what must drive the NPU
    audience: Audience
    serials: Iterator[int] = dataclasses.field(default_factory=lambda: itertools.count(1 << 40))

    @classmethod
    @contextlib.contextmanager
    def set(cls, images: Images, *, resets: bool = False) -> Iterator[Scene]:
        """Boot, load the attacker, and fill secure memory. With `resets` it starts again after a reset."""
        with Machine(
            images, ram_bytes=RAM_BYTES, cpus=CPUS, npu=True, devices=DEVICES, lines=(LINE,), resets=resets
        ) as machine:
            machine.agent.ask("load", "flexattack")
            machine.agent.ask("write", "/sys/module/flexmem/parameters/idle_ms", "0")  # we switch it off
            ram, doorbell = (os.dup(fd) for fd in machine.secure_fds)
            mailbox = Mailbox(Ram(ram), socket.socket(fileno=doorbell))
            pages = GuestPages(Ram(ram), mailbox)
            audience = Audience()
            pages.start(audience)
            memory = TrustZoneMemory(pages)
            arena, canary = memory.reserve(_SECRET), secrets.token_bytes(32)
            scene = cls(
                machine, mailbox, canary, memory, pages, arena, images.npu_core.read_bytes(), audience
            )
            scene.hold()
            yield scene

    def hold(self) -> None:
        """Have secure memory, full of the canary."""
        self.memory.commit(self.arena, 0, _SECRET)
        with self.memory.view(self.arena, 0, _SECRET) as view:
            if any(view):
                raise Pointless("the secure world was handed words that are not its own")
            view[:] = self.canary * (_SECRET // len(self.canary))

    def release(self) -> None:
        """Offer all secure memory to the OS, and wait until it has it."""
        self.memory.release(self.arena, 0, _SECRET)

    def give_back(self) -> None:
        """Release all there is, the unused too, so that the secure world soon leaves."""
        self.release()
        self.pages.trim(0)
        until(lambda: not self.machine.monitor().pages["SECURE"], "the OS does not take what it is offered")

    def say(self, *commands: Command) -> None:
        """Say something as the secure world, and have it carried out."""
        self.mailbox.put(*commands)
        until(lambda: not self.mailbox.waiting, "the OS does not serve the mailbox")

    def check_canary(self) -> None:
        """Raise Gained when secure memory is not what the secure world wrote."""
        with self.memory.view(self.arena, 0, _SECRET) as view:
            if bytes(view) != self.canary * (_SECRET // len(self.canary)):
                raise Gained("secure memory was altered")


def hidden_places() -> dict[str, int]:
    """Return addresses that the normal world must not reach, by what is there."""
    offsets = {
        "the monitor": hidden_offset(RAM_BYTES),
        "the NPU's control page": npu_control_offset(RAM_BYTES),
        "what drives the NPU": npu_control_offset(RAM_BYTES) + PAGE,
        "the page states": states_offset(RAM_BYTES),
        "the tables": states_offset(RAM_BYTES) + MIB,
        "the mailbox": mailbox_offset(RAM_BYTES),
        "the end of RAM": RAM_BYTES - PAGE,
    }
    registers = {
        "secure flash": 0x0000_0000,
        "secure RAM": SECURE_RAM,
        "the secure UART": SECURE_UART,
        "the secure GPIO": 0x090B_0000,
        "the SMMU": SMMU,
        "fw_cfg": FW_CFG,
        "virtio-mmio": 0x0A00_0000,
    }
    return {name: BASE + offset for name, offset in offsets.items()} | registers


def expect(status: int, wanted: int, otherwise: str) -> None:
    """Raise Gained when a call was not answered as it should be."""
    if status != wanted:
        raise Gained(f"{otherwise} (status {status})")


def demand(status: int, wanted: int, otherwise: str) -> None:
    """Raise Pointless when what every attacker may do is not answered as it should be."""
    if status != wanted:
        raise Pointless(f"{otherwise} (status {status})")


def until(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait for what must come soon. Raises Pointless when it does not."""
    deadline = time.monotonic() + _SOON
    while not condition():
        if time.monotonic() > deadline:
            raise Pointless(otherwise)
        time.sleep(0.01)
