"""A page for keys: kept from others' eyes, and wiped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flexserve.platforms.linux import mman
from flexserve.platforms.linux.secret_page import SecretPage


def test_what_is_put_there_stays_until_it_is_wiped():
    page = SecretPage()
    page.view(10, 4)[:] = b"keys"
    assert bytes(page.view(10, 4)) == b"keys"
    page.wipe(10, 4)
    assert bytes(page.view(0, mman.PAGE)) == bytes(mman.PAGE)


def test_random_bytes_are_made_in_place_and_differ():
    page = SecretPage()
    first = bytes(page.fill(0, 96))
    assert first != bytes(page.fill(0, 96))
    assert bytes(page.view(96, 32)) == bytes(32)


@pytest.mark.parametrize(("offset", "size"), [(-1, 2), (mman.PAGE, 1), (0, mman.PAGE + 1), (5, -1)])
def test_nothing_beyond_the_page_can_be_reached(offset: int, size: int):
    with pytest.raises(ValueError, match="within the page"):
        SecretPage().view(offset, size)


def test_a_debugger_reads_nothing_of_secret_memory():
    page = SecretPage()
    if not page.secret:
        pytest.skip("this kernel has no secret memory")
    page.view(0, 4)[:] = b"keys"
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        memory.seek(page._address)
        with pytest.raises(OSError, match=r"."):
            memory.read(4)


def test_a_page_that_nobody_has_any_more_is_gone():
    page = SecretPage()
    before = Path("/proc/self/maps").read_text()
    line = f"{page._address:x}-"
    assert line in before
    del page
    assert line not in Path("/proc/self/maps").read_text()


def test_the_end_of_a_forked_process_leaves_it_as_it_was():
    page = SecretPage()
    page.view(0, 4)[:] = b"keys"
    if os.fork() == 0:
        del page
        os._exit(0)
    os.wait()
    assert bytes(page.view(0, 4)) == b"keys"
