"""Where a secure OS and its application lie in the firmware's image."""

from __future__ import annotations

import pytest

from flexserve.emulator.secure_os import firmware_with, provision
from flexserve.errors import NormalWorldError

HEADER = b"FLEXSEOS" + bytes(16)
CODE = HEADER + bytes(32) + b"code" * 20


def test_each_part_lies_where_it_is_linked_for() -> None:
    image = firmware_with(b"el3", HEADER + bytes(100), b"\x7fELF")
    assert image.startswith(b"el3\0")
    assert image[0x40_0000:].startswith(b"FLEXSEOS")
    assert image[0x80_0000:] == b"\x7fELF"


@pytest.mark.parametrize("large", [0, 1, 2])
def test_what_is_too_large_for_its_place_is_refused(large: int) -> None:
    parts = [b"el3", HEADER, b"\x7fELF"]
    parts[large] = bytes(0x180_0001)
    with pytest.raises(NormalWorldError, match="do not fit"):
        firmware_with(*parts)


def test_each_start_has_another_seed_and_nothing_else_changes() -> None:
    image = firmware_with(b"el3", CODE, b"\x7fELF")
    first, second = bytearray(image), bytearray(image)
    provision(first)
    provision(second)
    place = slice(0x40_0018, 0x40_0038)
    assert len({bytes(first[place]), bytes(second[place]), bytes(32)}) == 3
    first[place] = bytes(32)
    assert first == image


def test_the_secret_lies_behind_the_seed() -> None:
    image = bytearray(firmware_with(b"el3", HEADER + bytes(100), b"\x7fELF"))
    provision(image, b"s" * 32)
    assert image[0x40_0038:0x40_0059] == b"s" * 32 + b"\0"


def test_a_firmware_without_a_secure_os_is_left_as_it_is() -> None:
    image = bytearray(b"el3" + bytes(0x40_0040))
    provision(image)
    assert not any(image[3:])
