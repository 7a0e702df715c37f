"""A disk of a booted machine, by the commands of the driver: what they do, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flexserve.emulator.machine import Machine
from flexserve.errors import NormalWorldError
from flexserve.platforms.trustzone.disk_image import SLOT, TAG, DiskImage, FileBlocks
from flexserve.platforms.trustzone.ram import PAGE
from flexserve.tee_client.disk import GuestBlocks
from flexserve.tee_client.guest_disk import GuestDisk
from flexserve.testing.machines import booted, guest_disk
from flexserve.units import MIB

pytestmark = pytest.mark.vm

SIZE = 8 * SLOT


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disk's file."""
    path = tmp_path_factory.mktemp("disk") / "disk"
    with FileBlocks.create(path, SIZE):
        pass
    return path


@pytest.fixture(scope="module")
def machine(file: Path) -> Iterator[Machine]:
    with booted(256 * MIB, disks=[file]) as machine:
        yield machine


@pytest.fixture
def guest(machine: Machine) -> GuestDisk:
    return guest_disk(machine)


def test_what_is_written_is_on_the_disk_also_for_a_driver_that_was_loaded_again(
    machine: Machine, guest: GuestDisk, file: Path
) -> None:
    pieces = [(b"piece" * 300_000, b"t" * TAG), (b"x", bytes(TAG))]  # more than the driver's buffer has
    DiskImage.create(GuestBlocks(guest), SIZE).put("kv/a/1", b"head", pieces)
    with FileBlocks(file) as blocks:
        image = DiskImage(blocks)
        assert [image.read(piece) for piece in image.objects()["kv/a/1"].pieces] == [
            data for data, _ in pieces
        ]
    machine.agent.ask("unload", "flexmem")
    machine.agent.ask("load", "flexmem")
    again = DiskImage(GuestBlocks(guest))
    assert [again.read(piece) for piece in again.objects()["kv/a/1"].pieces] == [data for data, _ in pieces]


def test_pages_stay_the_guests_where_no_secure_world_is_to_get_them(
    machine: Machine, guest: GuestDisk
) -> None:
    with pytest.raises(NormalWorldError) as refused:
        guest.disk("grant", "512", "512")
    assert refused.value.code == "guest_refused"
    assert machine.agent.ask("flexmem")["held"] == 0
    assert guest.disk("return", "262144", "512") == {"pages": 0}


def room(guest: GuestDisk) -> int:
    """Return the bytes that it says it could hand over."""
    pages = guest.disk("room")["pages"]
    assert isinstance(pages, int)
    return pages * PAGE


def test_there_is_room_for_what_the_kernel_does_not_keep_for_itself(
    machine: Machine, guest: GuestDisk
) -> None:
    reserve = "/sys/module/flexmem/parameters/reserve_percent"
    usual = int(machine.agent.ask("read", reserve)["text"])
    available = machine.agent.ask("meminfo")["available"]
    assert available // 2 < room(guest) < available
    machine.agent.ask("write", reserve, "100")
    assert room(guest) < 0
    with pytest.raises(NormalWorldError, match="Cannot allocate memory"):
        guest.disk("grant", "512", "512")
    machine.agent.ask("write", reserve, str(usual))


@pytest.mark.parametrize(
    "words",
    [
        ("nothing",),
        ("buffer",),
        ("read",),
        ("read", "0", "0"),
        ("read", "0", "129"),
        ("write", "-1", "1"),
        ("grant", "0", "513"),
        ("read", str(SIZE // 4096), "1"),
        ("read", str(1 << 63), "2"),
    ],
    ids=" ".join,
)
def test_a_command_that_is_none_is_refused(guest: GuestDisk, words: tuple[str, ...]) -> None:
    with pytest.raises(NormalWorldError) as refused:
        guest.disk(*words)
    assert refused.value.code == "guest_refused"
