"""Real machines for tests: built once, booted where a test asks, skipped where they cannot be had."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from flexserve.emulator.build import Images, NoSourcesError, Options, build
from flexserve.emulator.devicetree import BUFFER, BUFFER_BYTES
from flexserve.emulator.machine import Machine
from flexserve.emulator.packages import NoPackageError
from flexserve.emulator.tools import MissingToolError, require
from flexserve.folders import cache_folder
from flexserve.platforms.trustzone.ram import BASE, Ram
from flexserve.tee_client.guest_disk import GuestDisk
from flexserve.units import MIB


def images_of(
    ram_bytes: int,
    cpus: int,
    options: Options | None = None,
    application: Path | None = None,
    unprotected: Path | None = None,
) -> Images:
    """Return what such a machine boots from; skip the test, saying why, where that cannot be had."""
    try:
        require("qemu-system-aarch64")
        return build(
            cache_folder() / "trustzone",
            ram_bytes=ram_bytes,
            cpus=cpus,
            progress=lambda _what: None,
            options=options,
            application=application,
            unprotected=unprotected,
        )
    except (MissingToolError, NoPackageError, NoSourcesError) as error:
        pytest.skip(str(error))


@contextlib.contextmanager
def booted(
    ram_bytes: int = 512 * MIB,
    cpus: int = 2,
    *,
    npu: bool = False,
    disks: Sequence[Path | int] = (),
    devices: Sequence[str] = (),
    options: Options | None = None,
    application: Path | None = None,
    unprotected: Path | None = None,
    secret: bytes = b"",
) -> Iterator[Machine]:
    """Boot a machine for the length of the block; skip the test, saying why, where that is impossible.

    An `application` runs at S-EL0, and gets the `secret`. One that is to run `unprotected` is a program of
    the guest's.
    """
    options = dataclasses.replace(options or Options(), npu=npu)
    images = images_of(ram_bytes, cpus, options, application, unprotected)
    with Machine(
        images, ram_bytes=ram_bytes, cpus=cpus, npu=npu, disks=disks, devices=devices, secret=secret
    ) as machine:
        yield machine


def guest_disk(machine: Machine) -> GuestDisk:
    """Return the disk of a machine, as a program of its guest uses it."""
    buffer = Ram(machine.ram_fd).window(BUFFER - BASE, BUFFER_BYTES)
    return GuestDisk(machine.disk_line, buffer, lambda _why: None)
