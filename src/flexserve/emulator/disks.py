"""The machine's disks: files of the host. Each sits behind the SMMU, as all devices do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from flexserve.errors import NormalWorldError


@contextlib.contextmanager
def opened(disk: Path | int) -> Iterator[int]:
    """Open a disk's file for the emulator, if it is no descriptor. Raises NormalWorldError."""
    if isinstance(disk, int):
        yield disk
        return
    try:
        fd = os.open(disk, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise NormalWorldError(
            f"The machine's disk {disk} cannot be opened: {error.strerror}.", hint="Check the file."
        ) from None
    try:
        yield fd
    finally:
        os.close(fd)


def arguments(fds: Sequence[int]) -> list[str]:
    """Return the words by which the emulator plays disks.

    What the host cannot read or write the guest is told of: by default, the emulator would stop the machine
    when the host's disk is full.
    """
    words: list[str] = []
    for number, fd in enumerate(fds):
        file = f"file.driver=file,file.locking=off,file.filename=/proc/self/fd/{fd}"  # its owner may read it
        words += ["-blockdev", f"driver=raw,node-name=disk{number},discard=unmap,{file}"]
        errors = "rerror=report,werror=report"
        words += [
            "-device",
            f"virtio-blk-pci,drive=disk{number},{errors},iommu_platform=on,disable-legacy=on",
        ]
    return words
