"""What is switched: CPUs, memory that comes back, and protection, which is off while nothing is held."""

from __future__ import annotations

import contextlib
import struct
import time

from flexserve.attacks.attempt import Gained, Pointless
from flexserve.attacks.trustzone.devices import copy_by_device
from flexserve.attacks.trustzone.scene import (
    FW_CFG,
    HIDDEN,
    MARK,
    SLOT,
    SMMU,
    Attacked,
    Scene,
    demand,
    expect,
)
from flexserve.errors import MonitorError, NormalWorldError
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.measured_boot import started_el2
from flexserve.platforms.trustzone.ram import PAGE

_CPU_ON, _INVALID_ADDRESS, _SYSTEM_RESET = 0xC400_0003, -9, 0x8400_0009  # PSCI
_BOOT = 120.0  # seconds
_IMAGE = 0x900  # of hidden memory: in the midst of the monitor's code
_UNUSED = 0xFF000  # the last page, which the monitor never looks at
_STREAMS = SMMU + 0x80  # where the SMMU's table of devices is
_LET_THROUGH = 9  # an entry of that table: valid, no translation
_TABLE = 0x4400_0000  # a page that the kernel leaves alone: the device tree, which ends before that entry
_COMMAND = FW_CFG + 0x10  # where fw_cfg takes the address of a command
_SIGNATURE = 0x0000_000A  # a command: select item 0, which is "QEMU", and read it
_SOON = 5.0  # seconds


def turn_cpus_off_and_on(scene: Attacked) -> str:
    """Turn a CPU off and on, look from there; start one in the monitor's memory."""
    expect(scene.smc(_CPU_ON, 1, HIDDEN, 0), _INVALID_ADDRESS, "a CPU was started in hidden memory")
    for _ in range(3):
        for state in ("0", "1"):
            scene.machine.agent.ask("write", "/sys/devices/system/cpu/cpu1/online", state)
        scene.expect_fault("read after a CPU came back", "on", 1, "peek", "direct", scene.secure())
    return "EL3 sets all of EL2 before a CPU enters the normal world, and refuses such entry points"


def read_after_recall(scene: Attacked) -> str:
    """Read pages right after the secure world gave them back."""
    secure = scene.secure()
    if not scene.canaries():
        raise Pointless("the canary is not in RAM to begin with")
    scene.release()
    if found := scene.canaries():
        raise Gained(f"the canary is in RAM {found} times")
    seen = scene.attack("peek", "direct", secure)
    scene.hold()
    if seen["fault"] != 0:
        raise Pointless("the page did not come back")
    return "the monitor overwrites a page before it is mapped again: no copy is left in RAM"


def let_devices_loose_while_off(scene: Scene) -> str:
    """While protection is off, reprogram the SMMU and use fw_cfg, which copies past it; go on afterwards."""
    scene.give_back()
    for step in (
        ("poke", "table", _TABLE + (SLOT << 3) * 64, _LET_THROUGH),
        ("poke", "device", _STREAMS, _TABLE),
    ):
        while_off(scene, *step)
    victim = HIDDEN + _UNUSED
    scene.attack("dma-write", victim, MARK)
    if _number(scene, victim) != MARK:
        raise Pointless("the device does not reach hidden memory while protection is off either")
    for by in ("device", "cpu"):
        _command(scene, by)
        if scene.word(_target(scene)) == bytes(8):
            raise Pointless(f"fw_cfg does not copy while protection is off either ({by})")
    demand(scene.call(abi.Call.VERSION), abi.Status.OK, "protection did not come back")
    scene.attack("dma-write", victim, MARK + 1)
    if (number := _number(scene, victim)) == MARK + 1:
        raise Gained("a device kept its way into hidden memory")
    if number != MARK:
        raise Pointless("the monitor itself writes to the page that the device was to reach")
    for by in ("device", "cpu"):
        _command(scene, by)
        if scene.word(_target(scene)) != bytes(8):
            raise Gained(f"fw_cfg carried out a command ({by})")
    scene.hold()
    copy_by_device(scene)
    return "before EL2 starts, EL3 gives the SMMU tables of its own and sees that they stand"


def reset_machine(scene: Scene) -> str:
    """Reset the machine, and look for secure pages in RAM once it runs again."""
    if not scene.canaries():
        raise Pointless("the canary is not in RAM to begin with")
    with contextlib.suppress(NormalWorldError):  # what comes is no answer, but a guest that is up again
        scene.attack("smc", _SYSTEM_RESET, seconds=_BOOT)
    try:
        scene.own()
    except NormalWorldError:
        scene.machine.agent.ask("load", "flexattack")
    else:
        raise Pointless("the machine was not reset")
    if found := scene.canaries():
        raise Gained(f"the canary is in RAM {found} times")
    return (
        "EL2 overwrites what is secure before a reset, EL3 all of RAM but what is loaded before the OS starts"
    )


def alter_monitor_while_off(scene: Scene) -> str:
    """Patch the monitor while protection is off."""
    scene.give_back()
    while_off(scene, "peek", "table", HIDDEN)
    demand(scene.call(abi.Call.VERSION), abi.Status.OK, "protection did not come back")
    scene.expect_fault("read once protection was back", "peek", "table", HIDDEN)
    while_off(scene, "poke", "table", HIDDEN + _IMAGE, MARK)
    expect(scene.call(abi.Call.VERSION), abi.Status.TAMPERED, "the altered monitor was started")
    try:
        scene.hold()
    except NormalWorldError:
        return "EL3 finds that EL2's image has another hash, and refuses everything from then on"
    raise Gained("the secure world was given memory under an altered monitor")


def attest_altered_monitor(scene: Scene) -> str:
    """Have a secure world attested on a machine whose monitor was altered."""
    said = scene.mailbox.measured(_SOON)
    if said is None or said.protection is abi.MeasuredByte.ON:
        raise Pointless("the monitor was not altered, or is silent")
    try:
        started_el2(scene.mailbox)
    except MonitorError:
        return f"EL3 says {said.protection.name} to the secure world, over a wire that the OS does not reach"
    raise Gained("the altered monitor passes for the image that it was started from")


def _relax(scene: Scene) -> None:
    """Have protection switched off, as the driver does when nothing is held for a while."""
    deadline = time.monotonic() + _SOON
    while (status := scene.call(abi.Call.RELAX)) != abi.Status.OK:
        if time.monotonic() > deadline:
            raise Pointless(f"protection does not go off ({abi.Status(status).name})")
        time.sleep(0.05)


def while_off(scene: Scene, *words: object) -> dict[str, int]:
    """Do what cannot fail while protection is off; a call of the driver in between brings it back."""
    deadline = time.monotonic() + _SOON
    _relax(scene)
    while (made := scene.attack(*words)).get("fault", 0) != 0:
        if time.monotonic() > deadline:
            raise Pointless("what is hidden cannot be reached while protection is off")
        _relax(scene)
    return made


def _command(scene: Scene, by: str) -> None:
    """Have fw_cfg copy its signature to the attacker's page, by a command that lies there, too."""
    target = _target(scene)
    at = target + PAGE // 4
    words = struct.unpack("<2Q", struct.pack(">IIQ", _SIGNATURE, 8, target))
    for ipa, word in ((target, 0), (at, words[0]), (at + 8, words[1])):
        scene.attack("poke", "direct", ipa, word)
    where = int.from_bytes(at.to_bytes(8, "big"), "little")
    if by == "cpu":
        scene.attack("poke", "device", _COMMAND, where)
    else:
        scene.attack("dma-write", _COMMAND, where)


def _target(scene: Scene) -> int:
    return scene.own() + PAGE // 2  # the copying device keeps its program at the start


def _number(scene: Scene, ipa: int) -> int:
    return int.from_bytes(scene.word(ipa), "little")
