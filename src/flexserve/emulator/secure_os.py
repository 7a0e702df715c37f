"""Where in the firmware's image a secure OS and its application lie; and what each start puts there.

The addresses are those of secure flash (monitor/el3/secure_os.h, secure-os/plat). A board would have a
generator of random numbers, and a ROM that hands on a secret; here whoever starts the machine writes 32 bytes
of each behind the secure OS's header.
"""

from __future__ import annotations

import os
import struct

from flexserve.errors import NormalWorldError

_SECURE_OS, _APPLICATION, _END = 0x40_0000, 0x80_0000, 0x200_0000
_MAGIC = b"FLEXSEOS"
_HEADER = struct.Struct("<8s2Q")  # magic, where its first instruction is, bytes
_SEED = slice(_SECURE_OS + _HEADER.size, _SECURE_OS + _HEADER.size + 32)
_SECRET = slice(_SEED.stop, _SEED.stop + 32)


def firmware_with(firmware: bytes, secure_os: bytes, application: bytes) -> bytes:
    """Return an image of the firmware, the secure OS and a static aarch64 program that runs over it.

    Raises NormalWorldError when one of them is too large for its place.
    """
    image = bytearray()
    for part, start, end in (
        (firmware, 0, _SECURE_OS),
        (secure_os, _SECURE_OS, _APPLICATION),
        (application, _APPLICATION, _END),
    ):
        if len(part) > end - start:
            raise NormalWorldError(
                f"{len(part)} bytes do not fit into the {end - start} of secure flash from {start:#x} on.",
                hint="Link a smaller program.",
            )
        image += bytes(start - len(image)) + part
    return bytes(image)


def kernel_of(image: bytes) -> bytes:
    """Return the secure OS of an image, and what is between it and its application."""
    return image[_SECURE_OS:_APPLICATION]


def application_of(image: bytes) -> bytes:
    """Return the application of an image."""
    return image[_APPLICATION:]


def has_one(image: bytes | bytearray) -> bool:
    """Return whether a firmware's image has a secure OS."""
    return image[_SECURE_OS : _SECURE_OS + len(_MAGIC)] == _MAGIC


def hand_on(image: int, secret: bytes) -> None:
    """Write the application's secret into the file of an image that is about to start. Raises OSError."""
    os.pwrite(image, secret, _SECRET.start)


def provision(image: bytearray, secret: bytes = b"") -> None:
    """Write random bytes where the secure OS of a firmware's image, if it has one, looks for its seed.

    And the 32 bytes of `secret`, if there is one: of these its application derives keys.
    """
    if has_one(image):
        image[_SEED] = os.urandom(_SEED.stop - _SEED.start)
        image[_SECRET] = secret or image[_SECRET]
