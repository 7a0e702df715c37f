"""The program that has the device's key while a machine starts: it plays fuses, boot ROM and factory.

    fuses KEY STORE FIRMWARE FIRMWARE_KEY EL2 SHA512 DESCRIPTOR

It verifies the firmware, whose digest has to be SHA512. It writes the secret of the application's layer into
the image that DESCRIPTOR is (-1: nowhere), writes the store's blocks for the application, says a
device.Provisioned, and ends. So no process that lives on has the key, nor a secret that the ROM computes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from flexserve.emulator import boot_rom, secure_os
from flexserve.emulator.device import Provisioned
from flexserve.emulator.handed_on import handed_on
from flexserve.errors import FlexServeError, NormalWorldError
from flexserve.platforms.linux.hardening import harden
from flexserve.protocol.ending import leave, say_why_not
from flexserve.protocol.launch import EXIT_CANNOT_START
from flexserve.trusted.store.for_application import write_blocks
from flexserve.trusted.store.keys import DeviceKey


def provision(
    key: Path, store: Path, firmware: Path, firmware_key: Path, el2: Path, *, digest: bytes, descriptor: int
) -> Provisioned:
    """Do it. Raises what DeviceKey.load and boot_rom.verified raise."""
    image, started = boot_rom.verified(firmware, firmware_key)
    if started.digest != digest:
        raise NormalWorldError("The firmware was replaced after it was started.", hint="Restart flexserve.")
    device = DeviceKey.load(key)
    handed = handed_on(device.attestation_root, image, el2.read_bytes(), started.authority)
    if descriptor >= 0:
        secure_os.hand_on(descriptor, handed.secret)
    blocks = write_blocks(store, DeviceKey(handed.secret), device)
    return Provisioned(msgspec.msgpack.encode([handed.chain, handed.measurements]), blocks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; return its exit status."""
    *paths, digest, descriptor = sys.argv[1:] if arguments is None else arguments
    try:
        harden(keep={int(descriptor)})
        said = provision(*map(Path, paths), digest=bytes.fromhex(digest), descriptor=int(descriptor))
    except FlexServeError as error:
        say_why_not(error)
        return EXIT_CANNOT_START
    sys.stdout.buffer.write(msgspec.msgpack.encode(said))
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    leave(main())
