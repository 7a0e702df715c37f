"""Machines with a secure world inside, as the command line has them: with a disk of the store's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from library import Library

from flexserve.emulator import trusted_app
from flexserve.emulator.device import Device
from flexserve.emulator.inner_core import InnerCore
from flexserve.emulator.machine import Machine
from flexserve.emulator.store_disk import StoreDisk
from flexserve.harness.worlds import DrivenWorld
from flexserve.testing.machines import images_of
from flexserve.units import MIB

RAM = 512 * MIB
QUESTION = "What is Flex-Mem?"
ANSWER = "Flex-Mem is recallable secure memory."
TOKENS = 40


@contextlib.contextmanager
def machines(library: Library, *, ram: int = RAM, with_disk: bool = True) -> Iterator[InnerCore]:
    programs = trusted_app.built(trusted_app.default_cache())
    if programs is None:
        pytest.skip("the trusted application is not built of these sources: `make trusted-app`")
    images = images_of(ram, 2, application=programs.application)
    device = Device(library.key, library.root)
    with StoreDisk(library.root) as disk:

        def make() -> Machine:
            disks = [disk.made_ready(images.firmware.read_bytes())] if with_disk else []
            return Machine(images, ram_bytes=ram, disks=disks, device=device)

        with InnerCore(make) as core:
            yield core


@contextlib.contextmanager
def client_of(core: InnerCore, library: Library) -> Iterator[DrivenWorld]:
    """A client of the application of a machine that was just booted."""
    core.renew()
    with DrivenWorld(core.secure_options(library.options()), program=(core.program,)) as world:
        yield world


def held(core: InnerCore) -> int:
    """Return the bytes that the machine's kernel counts as handed over."""
    return core.memory().charged(0)


def conserved(core: InnerCore) -> bool:
    return sum(core.machine.monitor().pages.values()) == RAM
