"""Devices: told what to copy and where, moved over other registers, configured without sense."""

from __future__ import annotations

import secrets
import select

from flexserve.attacks.attempt import Gained, Pointless
from flexserve.attacks.trustzone.scene import (
    FW_CFG,
    HIDDEN,
    LINE,
    MARK,
    SECURE_RAM,
    SECURE_UART,
    SMMU,
    Attacked,
)
from flexserve.platforms.trustzone.ram import PAGE

_ELSEWHERE = 0x1010_0000  # in the window of PCI's memory, where nothing is
_DEVICES = 3  # that are configured: the bridge, the copying one, the second virtio-serial
_PATIENCE_MS = 300  # until a device has sent what it read
_SMMU_CONTROL = SMMU + 0x20
_REASON = "the SMMU's table, which is the monitor's, has no mapping of these pages"


def copy_by_device(scene: Attacked) -> str:
    """Have a device copy from and to secure pages and the monitor, and into the SMMU's registers."""
    own = scene.own() + PAGE // 2
    scene.attack("poke", "direct", own, MARK)
    read = scene.attack("dma-read", own)["value"]
    scene.attack("dma-write", own, MARK + 1)
    if read != MARK or int.from_bytes(scene.word(own), "little") != MARK + 1:
        raise Pointless("the device does not copy the attacker's own page either")
    for switched in ("as it is", "told to let all through"):
        for name, ipa in _victims(scene):
            _copy(scene, name, ipa, switched)
        scene.attack("dma-write", _SMMU_CONTROL, 0)
    scene.check_canary()
    return _REASON


def lend_buffers_to_virtio(scene: Attacked) -> str:
    """Point the queues of a virtio-serial, as every machine has one, at secure pages and the monitor."""
    own = scene.own()
    scene.attack("poke", "direct", own, MARK)
    if _sent(scene, own) != scene.word(own):
        raise Pointless("it does not send the attacker's own page either")
    came = _received(scene, own)
    if scene.word(own) != came:
        raise Pointless("it does not receive into the attacker's own page either")
    for name, ipa in _victims(scene):
        before = scene.word(ipa)
        if _sent(scene, ipa) == before:
            raise Gained(f"it sent {name}")
        _received(scene, ipa)
        if scene.word(ipa) != before:
            raise Gained(f"it received into {name}")
    scene.check_canary()
    return _REASON


def move_registers(scene: Attacked) -> str:
    """Move a device's registers over secure pages, the monitor, the SMMU, fw_cfg, secure RAM and UART."""
    made = scene.attack("pci-move", _ELSEWHERE)
    if made["fault"] or made["value"] != made["mark"]:
        raise Pointless("its registers cannot be moved at all")
    places = {
        **dict(_victims(scene)),
        "the SMMU": SMMU,
        "fw_cfg": FW_CFG,
        "secure RAM": SECURE_RAM,
        "the secure UART": SECURE_UART,
    }
    for name, address in places.items():
        scene.expect_fault(f"covered: {name}", "pci-move", address)
    scene.check_canary()
    for name, ipa in _victims(scene):
        _copy(scene, name, ipa, "after its registers were there")
    return "what is hidden stays hidden, whatever lies there; and RAM is found before a device's registers"


def configure_devices(scene: Attacked) -> str:
    """Set every bit of every device's configuration, bus mastering too; then have them copy again."""
    made = scene.attack("pci-configure")
    if made["devices"] < _DEVICES or not made["bits"]:
        raise Pointless("not every device can be configured")
    copy_by_device(scene)
    lend_buffers_to_virtio(scene)
    return f"{made['bits']} bits of {made['devices']} devices change nothing: {_REASON}"


def _victims(scene: Attacked) -> list[tuple[str, int]]:
    return [("a secure page", scene.secure()), ("the monitor", HIDDEN)]


def _copy(scene: Attacked, name: str, ipa: int, how: str) -> None:
    """Have the copying device read a page and write to it."""
    before = scene.word(ipa)
    got = scene.attack("dma-read", ipa)["value"] % 2**64
    if got == int.from_bytes(before, "little"):  # else whatever a device makes of a failure
        raise Gained(f"a device read {name} ({how})")
    scene.attack("dma-write", ipa, MARK)
    if scene.word(ipa) != before:
        raise Gained(f"a device wrote to {name} ({how})")


def _sent(scene: Attacked, ipa: int) -> bytes:
    """Have the virtio-serial send 8 bytes of a page; return what came out of it."""
    line = scene.machine.lines[LINE]
    scene.attack("virtio-read", ipa, 8)
    poll = select.poll()
    poll.register(line, select.POLLIN)
    return line.recv(4096) if poll.poll(_PATIENCE_MS) else b""


def _received(scene: Attacked, ipa: int) -> bytes:
    """Have the virtio-serial receive 8 bytes into a page; return them."""
    word = secrets.token_bytes(8)
    scene.machine.lines[LINE].send(word)
    scene.attack("virtio-write", ipa, len(word))
    return word
