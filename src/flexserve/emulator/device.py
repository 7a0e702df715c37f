"""A device, as whoever starts its machine sees it: the places of its key and of its store, never the key.

The key is read by a process of its own (fuses), which ends when the machine has what is meant for it.
"""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import msgspec

from flexserve import interpreter
from flexserve.emulator.boot_rom import StartedFirmware
from flexserve.emulator.build import Images
from flexserve.errors import NormalWorldError
from flexserve.platforms.linux import parent_death
from flexserve.protocol.failures import revive
from flexserve.protocol.launch import EXIT_CANNOT_START
from flexserve.protocol.statuses import Failure

_PROGRAM = "flexserve.emulator.fuses"
_PATIENCE = 120.0  # seconds, on a machine that shares its cores


class Provisioned(msgspec.Struct, frozen=True):
    """What a machine was given, as far as it is no secret.

    `identity`: what certifies the application's key, for who asks who it is
    (flexserve.tee_client.witness). `blocks`: how many models were made ready for the application.
    """

    identity: bytes
    blocks: int


@dataclasses.dataclass(frozen=True, slots=True)
class Device:
    """The files of a device: its `key`, and the `store` whose models the application may open."""

    key: Path
    store: Path

    def provision(self, images: Images, image: int, started: StartedFirmware) -> Provisioned:
        """Write the secret of the application into an image that is about to start; ready the store for it.

        `image` is a descriptor; -1: it has started, so the store's models are all. `started`: what was
        verified of it. Raises what DeviceKey.load and boot_rom.verified raise.
        """
        words = (self.key, self.store, images.firmware, images.firmware_key, images.el2)
        return _said_by(
            interpreter.command(_PROGRAM, *map(str, words), started.digest.hex(), str(image)), image
        )


def _said_by(command: list[str], image: int) -> Provisioned:
    """Run the program, and return what it says."""
    try:
        done = subprocess.run(
            parent_death.command(*command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=(image,) if image >= 0 else (),
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NormalWorldError(
            f"The machine was not given its secret within {_PATIENCE:.0f} seconds.",
            hint="Start it again while the host has less to do.",
        ) from None
    last = done.stderr.splitlines()[-1:]
    if done.returncode == 0:
        return msgspec.msgpack.decode(done.stdout, type=Provisioned)
    if done.returncode == EXIT_CANNOT_START and last:
        raise revive(msgspec.json.decode(last[0], type=Failure))
    raise NormalWorldError(
        f"The machine was not given its secret: {b' '.join(last).decode(errors='replace')[:500]}",
        hint="Start it again.",
    )
