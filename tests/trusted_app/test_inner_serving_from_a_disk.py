"""Policy drives the application at S-EL0 of a machine, whose guest's disk brings the weights."""

from __future__ import annotations

import mmap
import time
from pathlib import Path

import pytest
from inner_application import MODEL, ROOT, Application
from test_inner_on_a_machine import RAM, SAID
from test_inner_serving import CHAT, Served

from flexserve.emulator.machine import Machine
from flexserve.emulator.trusted_app import Programs
from flexserve.platforms.trustzone.disk_image import SLOT, DiskImage, FileBlocks
from flexserve.platforms.trustzone.ram import BASE, PAGE
from flexserve.tee_client.disk import Disk
from flexserve.tee_client.ring import Ring
from flexserve.testing.machines import booted, guest_disk
from flexserve.testing.trustzone import eventually
from flexserve.trusted.sidecar import start_helper
from flexserve.trusted.store import DeviceKey, Store
from flexserve.trusted.text.rendering.renderer import Renderer
from flexserve.units import MIB

pytestmark = [pytest.mark.vm, pytest.mark.engine]

DISK = 64 * MIB
MOST = 10  # tokens


class Ungreeted(Application):
    """The application of a machine, to which nothing was said yet."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        state = machine.agent.ask("flexmem")
        size = state["ring_pages"] * PAGE
        memory = memoryview(mmap.mmap(machine.ram_fd, size, offset=state["ring_page"] * PAGE - BASE))
        self.drive(Ring(memory, self._rest, self._told), hello=False)

    def _told(self) -> None:
        self._machine.agent.ask("write", SAID, "1")

    def _rest(self) -> None:
        self._machine.require_alive()
        time.sleep(0.0005)


def test_after_a_recall_the_weights_come_by_dma_into_pages_that_the_guest_hands_over(
    programs: Programs, tmp_path: Path
) -> None:
    store, image, renderer = tmp_path / "store", tmp_path / "disk", Renderer(start_helper())
    Store(store, DeviceKey(ROOT)).add(MODEL, "tiny", lambda _done, _total: None)
    with FileBlocks.create(image, DISK) as blocks:
        DiskImage.create(blocks, DISK)
    with booted(RAM, disks=(image,), application=programs.application, secret=ROOT) as machine:
        application = Ungreeted(machine)
        disk = Disk(guest_disk(machine), application.link)
        served = Served(application, store, renderer, disk=disk)
        before = served.ask(CHAT, most=MOST)
        served.recall()
        [memory] = served.app.memory()
        assert memory.weights == 0
        assert eventually(lambda: machine.monitor().pages["SECURE"] == served.app.pool().resident)
        recalled = machine.agent.ask("flexmem")
        after = served.ask(CHAT, most=MOST)
        read = machine.agent.ask("flexmem")
        pages = memory.size // served.app.chunk * SLOT // PAGE
        assert read["disk_pages"] - recalled["disk_pages"] == pages
        assert read["granted"] - recalled["granted"] == read["wanted"] - recalled["wanted"] + pages
        assert read["taken"] == recalled["taken"]  # nothing had to go back for them
        assert after.tokens == before.tokens
        held = served.app.pool().resident
        during = served.ask(CHAT, most=MOST, during=lambda: served.recall(held))
        assert during.tokens == before.tokens
        assert machine.monitor().pages["SECURE"] == served.app.pool().resident
        assert sum(machine.monitor().pages.values()) == RAM
        served.scheduler.drain(5)
    renderer.close()
    assert list((store / "images").iterdir()) == []
