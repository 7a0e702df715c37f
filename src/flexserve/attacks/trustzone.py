"""A compromised kernel on the emulated TrustZone machine, against its monitor.

The guest's kernel runs a module that attacks (driver/flexattack); this process plays the secure world,
holds pages with a canary in them, and can see all of RAM, so it knows what the attacker got. An attack
on what must not be reached is first made on a page of the attacker's own, where it must work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

from flexserve.attacks.attempt import Attempt, Gained, Pointless, attempt
from flexserve.errors import NormalWorldError
from flexserve.platforms.ports import Arena
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.build import Images, build
from flexserve.platforms.trustzone.guest_pages import GuestPages
from flexserve.platforms.trustzone.layout import hidden_offset, mailbox_offset, states_offset
from flexserve.platforms.trustzone.machine import Machine
from flexserve.platforms.trustzone.ram import BASE, PAGE, Ram
from flexserve.platforms.trustzone.secure_memory import TrustZoneMemory, pages_of
from flexserve.units import MIB

RAM_BYTES, CPUS = 512 * MIB, 2
DEVICES = ("lsi53c895a",)  # a controller that copies memory as it is told
_SECRET = 8 * MIB
_FAULT = -14  # EFAULT: what an access that was stopped is reported as
_SIGBUS = 7
_MARK = 0x6B636174
_SOON = 5.0  # seconds
_LONG = 60.0

# What the normal world must not reach besides the monitor's part of RAM, by physical address.
_HIDDEN_REGISTERS = {
    "secure flash": 0x0000_0000,
    "secure RAM": 0x0E00_0000,
    "secure UART": 0x0904_0000,
    "secure GPIO": 0x090B_0000,
    "SMMU": 0x0905_0000,
    "fw_cfg": 0x0902_0000,
    "virtio-mmio": 0x0A00_0000,
}
_UART = 0x0900_0000  # which it may


@dataclasses.dataclass(slots=True)
class Scene:
    """A booted machine whose secure world holds `arena`, full of `canary`."""

    machine: Machine
    memory: TrustZoneMemory
    pages: GuestPages
    arena: Arena
    canary: bytes

    @classmethod
    @contextlib.contextmanager
    def set(cls, images: Images) -> Iterator[Scene]:
        """Boot, load the attacker, and fill secure memory."""
        with Machine(images, ram_bytes=RAM_BYTES, cpus=CPUS, devices=DEVICES) as machine:
            machine.agent.ask("load", "flexattack")
            ram, doorbell = machine.secure_fds
            pages = pages_of(os.dup(ram), os.dup(doorbell), on_end=lambda: None)
            memory = TrustZoneMemory(pages)
            scene = cls(machine, memory, pages, memory.reserve(_SECRET), secrets.token_bytes(32))
            scene.hold()
            yield scene

    def hold(self) -> None:
        """Have secure memory, full of the canary."""
        self.memory.commit(self.arena, 0, _SECRET)
        with self.memory.view(self.arena, 0, _SECRET) as view:
            view[:] = self.canary * (_SECRET // len(self.canary))

    def give_back(self) -> None:
        """Release all secure memory, and wait until the OS has it."""
        self.memory.release(self.arena, 0, _SECRET)
        deadline = time.monotonic() + _SOON
        while self.secure_pages() and time.monotonic() < deadline:
            time.sleep(0.01)

    def secure_pages(self) -> int:
        """Return the pages that the monitor counts as SECURE."""
        return self.machine.monitor().pages["SECURE"] // PAGE

    # ---- the attacker's hands -------------------------------------------------------------------------

    def attack(self, *words: object, seconds: float = _LONG) -> dict[str, int]:
        """Have the attack module do something; return what it says."""
        return self.machine.agent.ask("attack", *map(str, words), seconds=seconds)

    def smc(self, function: int, *arguments: int) -> int:
        """Call the monitor; return the status."""
        return _signed(self.attack("smc", function, *arguments)["x0"])

    def call(self, call: abi.Call, *arguments: int) -> int:
        """Make one of the monitor's calls; return the status."""
        return self.smc(abi.SMC_BASE + call, *arguments)

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

    def check_canary(self) -> None:
        """Raise Gained when secure memory is not what the secure world wrote."""
        with self.memory.view(self.arena, 0, _SECRET) as view:
            if bytes(view) != self.canary * (_SECRET // len(self.canary)):
                raise Gained("secure memory was altered")

    def check_ram(self, copies: int) -> None:
        """Raise Gained unless the canary is in RAM exactly `copies` times."""
        with Ram(self.machine.ram_fd).window(0, RAM_BYTES) as view:
            found = len(re.findall(re.escape(self.canary), view))
        if found != copies:
            raise Gained(f"the canary is in RAM {found} times, not {copies}")


# ---- the attacks: each returns what stopped it, or raises Gained or Pointless ------------------------------

_WAYS = ("direct", "table", "device", "code")  # the kernel's map of RAM; mappings of the attacker's own


def read_as_kernel(scene: Scene) -> str:
    """Read a secure page through the kernel's map of RAM, or through page tables of the attacker's own."""
    own, secure = scene.own(), scene.secure()
    for way in _WAYS:
        scene.attack("poke", "direct", own, _MARK)
        if scene.attack("peek", way, own) != {"fault": 0, "value": _MARK}:
            raise Pointless(f"the attacker's own page cannot be read in this way ({way})")
        _expect_fault(scene.attack("peek", way, secure), f"read ({way})")
    return "Stage-2 has no mapping of the page; the kernel gets a fault, its fix-ups run"


def write_as_kernel(scene: Scene) -> str:
    """Write to a secure page in the same ways."""
    own, secure = scene.own(), scene.secure()
    for way in _WAYS:
        if scene.attack("poke", way, own, _MARK)["fault"] != 0:
            raise Pointless(f"the attacker's own page cannot be written in this way ({way})")
        _expect_fault(scene.attack("poke", way, secure, _MARK), f"written ({way})")
    scene.check_canary()
    return "Stage-2 has no mapping of the page"


def execute_as_kernel(scene: Scene) -> str:
    """Jump into a secure page."""
    _expect_fault(scene.attack("execute", "code", scene.secure()), "executed")
    return "Stage-2 has no mapping of the page; the attacker's thread dies"


def reach_granted(scene: Scene) -> str:
    """Read and write a page that was granted and not yet used."""
    if not scene.pages.want(1, 1):
        raise Pointless("the guest granted no page")
    ipa = scene.attack("find", int(abi.PageState.GRANTED))["ipa"]
    try:
        _expect_fault(scene.attack("peek", "direct", ipa), "read")
        _expect_fault(scene.attack("poke", "table", ipa, _MARK), "written")
    finally:
        scene.pages.trim(0)
    return "a page leaves Stage-2 with its grant, before the secure world hears of it"


def map_into_program(scene: Scene) -> str:
    """Map a secure page into a program, which reads and writes it, and hands it to a system call."""
    own, secure = scene.own(), scene.secure()
    for how, outcome in (("read", "signal"), ("write", "signal"), ("send", "errno")):
        control, made = (_touch(scene, ipa, how) for ipa in (own, secure))
        if control["signal"] or control["errno"]:
            raise Pointless("the attacker's own page cannot be mapped either")
        if made["mapped"] and made[outcome] != {"signal": _SIGBUS, "errno": -_FAULT}[outcome]:
            raise Gained(f"a program reached it ({how})")
    scene.check_canary()
    return "the program gets SIGBUS, and copy_from_user -EFAULT"


def reach_hidden(scene: Scene) -> str:
    """Read what is hidden: the monitor, its tables, secure RAM, the secure UART, the SMMU, fw_cfg."""
    if scene.attack("peek", "device", _UART)["fault"] != 0:
        raise Pointless("not even the UART can be read in this way")
    places = {
        "the monitor": hidden_offset(RAM_BYTES),
        "the page states": states_offset(RAM_BYTES),
        "the tables": states_offset(RAM_BYTES) + MIB,
        "the mailbox": mailbox_offset(RAM_BYTES),
        "the end of RAM": RAM_BYTES - PAGE,
    }
    addresses = {name: BASE + offset for name, offset in places.items()} | _HIDDEN_REGISTERS
    for name, address in addresses.items():
        for way in ("table", "device"):
            _expect_fault(scene.attack("peek", way, address), f"read: {name} ({way})")
        _expect_fault(scene.attack("poke", "device", address, _MARK), f"written: {name}")
    return f"{len(addresses)} places are in no table: Stage-2 lists what may be reached, and nothing else"


def grant_what_is_not_its_own(scene: Scene) -> str:
    """Grant a page twice; grant the monitor's pages, a device's, addresses outside of RAM."""
    own, grant = scene.own(), abi.Call.GRANT
    _expect(scene.call(grant, own, 1), abi.Status.OK, "a page of its own was refused")
    _expect(scene.call(grant, own, 1), abi.Status.DENIED, "a page was granted twice")
    _expect(scene.call(abi.Call.RETURN, own, 1), abi.Status.OK, "an unused page was not returned")
    hidden = BASE + hidden_offset(RAM_BYTES)
    for ipa, pages in ((hidden, 1), (hidden - PAGE, 2), (BASE + RAM_BYTES - PAGE, 1), (scene.secure(), 1)):
        _expect(scene.call(grant, ipa, pages), abi.Status.DENIED, f"{ipa:#x} was granted")
    malformed = (
        (_UART, 1),
        (0, 1),
        (BASE + RAM_BYTES, 1),
        (own + 1, 1),
        (own, 0),
        (own, 513),
        (own, 2**64 - 1),
    )
    for ipa, pages in malformed:
        _expect(scene.call(grant, ipa, pages), abi.Status.INVALID, f"{ipa:#x}, {pages} pages was granted")
    return "the monitor looks into its own table of page states before it does anything"


def take_what_is_not_offered(scene: Scene) -> str:
    """Take, or return, a page that the secure world uses; take a page twice."""
    own, secure = scene.own(), scene.secure()
    for call in (abi.Call.TAKE, abi.Call.RETURN):
        _expect(scene.call(call, secure, 1), abi.Status.DENIED, f"{call.name} of a secure page")
        _expect(scene.call(call, own, 1), abi.Status.DENIED, f"{call.name} of a page that it has")
    scene.check_canary()
    return "there is no transition from SECURE to the OS: only the secure world offers"


def call_at_random(scene: Scene) -> str:
    """Call the monitor ten thousand times with hostile registers, by SMC and by HVC."""
    before = scene.machine.monitor().pages
    for conduit in ("smc", "hvc"):
        found = scene.attack("fuzz", conduit, 10_000, secrets.randbits(32))
        if found["fault"] or found["rounds"] != 10_000:
            raise Gained(f"the machine lost its way after {found['rounds']} calls ({conduit})")
    if scene.machine.monitor().pages != before:
        raise Gained("pages changed hands")
    scene.check_canary()
    return "20000 calls, each answered with a status, and no page changed hands"


def race_two_cpus(scene: Scene) -> str:
    """Write to a page on one CPU while the other grants it; grant one page on both at once."""
    touched = scene.attack("race-touch", 5_000)
    if touched["leaks"]:
        raise Gained(f"{touched['leaks']} writes reached a granted page")
    if not (touched["writes"] and touched["faults"]):
        raise Pointless("the two CPUs did not meet")
    doubled = scene.attack("race-double", 2_000)
    if doubled["grants"] or doubled["returns"]:
        raise Gained(f"both won, or none, {doubled['grants'] + doubled['returns']} times")
    return f"unmap, flush, then publish, under one lock: {touched['faults']} writes came too late, none after"


def copy_by_device(scene: Scene) -> str:
    """Have a device copy from and to secure pages and the monitor."""
    own, ram = scene.own(), Ram(scene.machine.ram_fd)
    control = scene.attack("dma-read", own)
    if control["value"] == control["mark"]:
        raise Pointless("the device does not copy the attacker's own page either")
    hidden = BASE + hidden_offset(RAM_BYTES)
    for name, ipa in (("a secure page", scene.secure()), ("the monitor", hidden)):
        with ram.window(ipa - BASE, PAGE) as view:
            before = bytes(view)
            got = scene.attack("dma-read", ipa)["value"] % 2**64
            if got == int.from_bytes(before[:8], "little"):  # else whatever a device makes of a failure
                raise Gained(f"a device read {name}")
            scene.attack("dma-write", ipa, _MARK)
            if bytes(view) != before:
                raise Gained(f"a device wrote to {name}")
    scene.check_canary()
    return "the SMMU's table, which is the monitor's, has no mapping of these pages"


def turn_cpus_off_and_on(scene: Scene) -> str:
    """Turn a CPU off and on, look from there; start one in the monitor's memory."""
    hidden, cpu_on = BASE + hidden_offset(RAM_BYTES), 0xC400_0003
    _expect(scene.smc(cpu_on, 1, hidden, 0), -9, "a CPU was started in hidden memory")
    for _ in range(3):
        for state in ("0", "1"):
            scene.machine.agent.ask("write", "/sys/devices/system/cpu/cpu1/online", state)
    for _ in range(8):  # on whichever CPU
        _expect_fault(scene.attack("peek", "direct", scene.secure()), "read after a CPU came back")
    return "EL3 sets all of EL2 before a CPU enters the normal world, and refuses such entry points"


def read_after_recall(scene: Scene) -> str:
    """Read pages right after the secure world gave them back."""
    secure = scene.secure()
    scene.check_ram(_SECRET // len(scene.canary))
    scene.give_back()
    scene.check_ram(0)
    seen = scene.attack("peek", "direct", secure)
    scene.hold()
    if seen["fault"] != 0:
        raise Pointless("the page did not come back")
    return "the monitor overwrites a page before it is mapped again: no copy is left in RAM"


def alter_monitor_while_off(scene: Scene) -> str:
    """Patch the monitor while protection is off."""
    hidden = BASE + hidden_offset(RAM_BYTES)
    scene.give_back()
    scene.pages.trim(0)
    _while_off(scene, "peek", "table", hidden)
    if scene.call(abi.Call.VERSION) != abi.Status.OK:
        raise Gained("protection did not come back")
    _expect_fault(scene.attack("peek", "table", hidden), "read once protection was back")
    _while_off(scene, "poke", "table", hidden + 0x800, _MARK)
    _expect(scene.call(abi.Call.VERSION), abi.Status.TAMPERED, "the altered monitor was started")
    try:
        scene.hold()
    except NormalWorldError:
        return "EL3 finds that EL2's image has another hash, and refuses everything from then on"
    raise Gained("the secure world was given memory under an altered monitor")


ATTACKS: tuple[Callable[[Scene], str], ...] = (
    read_as_kernel,
    write_as_kernel,
    execute_as_kernel,
    reach_granted,
    map_into_program,
    reach_hidden,
    grant_what_is_not_its_own,
    take_what_is_not_offered,
    call_at_random,
    race_two_cpus,
    copy_by_device,
    turn_cpus_off_and_on,
    read_after_recall,
    alter_monitor_while_off,  # the last: there is no protection on this machine any more
)


def images(say: Callable[[str], None]) -> Images:
    """Return what the machine under attack boots from, having built what is missing."""
    from flexserve.settings import cache_folder

    return build(cache_folder() / "trustzone", ram_bytes=RAM_BYTES, cpus=CPUS, progress=say)


def run(say: Callable[[str], None]) -> Iterator[Attempt]:
    """Set the scene and make every attack.

    Raises NormalWorldError where no machine can be had, and with the machine's last words when an attack
    ends it.
    """
    parts = images(say)
    say("booting the machine under attack")
    with Scene.set(parts) as scene:
        for attack in ATTACKS:
            yield _survived(attack, scene)


def _survived(attack: Callable[[Scene], str], scene: Scene) -> Attempt:
    try:
        return attempt(attack, scene)
    except NormalWorldError as error:
        raise NormalWorldError(
            f"The attack {attack.__name__!r} broke the machine: {error.message} {scene.machine.last_words()}",
            hint="Report this as a bug.",
            code="machine_broken",
        ) from error


# ---- their tools ---------------------------------------------------------------------------------------


def _relax(scene: Scene) -> None:
    """Have protection switched off, as the driver does when nothing is held for a while."""
    deadline = time.monotonic() + _SOON
    while (status := scene.call(abi.Call.RELAX)) != abi.Status.OK:
        if time.monotonic() > deadline:
            raise Pointless(f"protection does not go off ({abi.Status(status).name})")
        time.sleep(0.05)


def _while_off(scene: Scene, *words: object) -> None:
    """Reach the monitor's memory while protection is off; a call of the driver in between brings it back."""
    deadline = time.monotonic() + _SOON
    _relax(scene)
    while scene.attack(*words)["fault"] != 0:
        if time.monotonic() > deadline:
            raise Pointless("the monitor's memory cannot be reached while protection is off")
        _relax(scene)


def _touch(scene: Scene, ipa: int, how: str) -> dict[str, Any]:
    result: dict[str, Any] = scene.machine.agent.ask("run", "touch", str(ipa), how, seconds=_LONG)["result"]
    return result


def _expect_fault(made: dict[str, int], what: str) -> None:
    if made["fault"] != _FAULT:
        raise Gained(f"a page was {what}")


def _expect(status: int, wanted: int, otherwise: str) -> None:
    if status != wanted:
        raise Gained(f"{otherwise} (status {status})")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
