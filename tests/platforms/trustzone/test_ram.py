from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from flexserve.errors import MonitorError
from flexserve.platforms.trustzone.ram import PAGE, Ram


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("ram")
    os.ftruncate(fd, 8 * PAGE)
    yield fd
    os.close(fd)


def test_a_part_is_reached_without_any_descriptor_and_nothing_else_is(file: int) -> None:
    own = os.dup(file)
    before = len(os.listdir("/proc/self/fd"))
    part = Ram(own).part(2 * PAGE, PAGE)
    os.close(own)
    assert len(os.listdir("/proc/self/fd")) == before - 1
    os.pwrite(file, b"seen", 2 * PAGE)
    assert bytes(part[:4]) == b"seen"
    part[:4] = b"sent"
    assert os.pread(file, 4, 2 * PAGE) == b"sent"
    assert len(part) == PAGE


@pytest.mark.parametrize(("offset", "length"), [(7 * PAGE, 2 * PAGE), (1, PAGE), (0, 0), (-PAGE, PAGE)])
def test_a_part_outside_of_ram_is_refused(file: int, offset: int, length: int) -> None:
    with pytest.raises(MonitorError):
        Ram(file).part(offset, length)
