"""The emulated machine: what it refuses, what it says when it fails, and that it leaves nothing behind."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import pytest

from flexserve.emulator import boot_rom
from flexserve.emulator.build import Images
from flexserve.emulator.machine import Machine
from flexserve.emulator.tools import MissingToolError
from flexserve.errors import CallerError, MachineGoneError, NormalWorldError
from flexserve.platforms.trustzone.abi import PageState
from flexserve.platforms.trustzone.secure_memory import pages_of
from flexserve.testing.machines import booted, images_of
from flexserve.testing.processes import is_gone
from flexserve.testing.trustzone import eventually
from flexserve.units import GIB, MIB

pytestmark = pytest.mark.vm

RAM = 256 * MIB


@pytest.fixture
def nowhere(tmp_path: Path) -> Images:
    """Images of zeros."""
    names = ("firmware", "kernel", "initrd", "devicetree", "npu_core", "el2")
    for name in names:
        (tmp_path / name).write_bytes(bytes(4096))
    images = Images(**{name: tmp_path / name for name in (*names, "firmware_key")})
    boot_rom.sign(images.firmware, images.firmware_key)
    return images


@pytest.mark.parametrize("size", [0, 255 * MIB, 256 * MIB + 4096, 4 * GIB])
def test_memory_that_the_board_cannot_have_is_refused(nowhere: Images, size: int) -> None:
    with pytest.raises(CallerError) as error:
        Machine(nowhere, ram_bytes=size)
    assert "256M to 3G" in error.value.hint


@pytest.mark.parametrize("cpus", [0, 9])
def test_more_cpus_than_the_board_can_have_are_refused(nowhere: Images, cpus: int) -> None:
    with pytest.raises(CallerError):
        Machine(nowhere, cpus=cpus)


def test_a_missing_emulator_is_said_with_the_command_that_installs_it(
    nowhere: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingToolError) as error, Machine(nowhere):
        pass
    assert "apt-get install qemu-system-arm" in error.value.hint


def test_firmware_that_has_no_place_for_the_board_is_refused(nowhere: Images) -> None:
    images_of(RAM, 1)
    nowhere.firmware.write_bytes(b"\xff" * 4096)
    boot_rom.sign(nowhere.firmware, nowhere.firmware_key)
    with pytest.raises(NormalWorldError, match="no place"), Machine(nowhere):
        pass


def test_firmware_that_was_changed_after_it_was_signed_is_not_started(nowhere: Images) -> None:
    images_of(RAM, 1)
    nowhere.firmware.write_bytes(bytes(4095) + b"\1")
    with pytest.raises(NormalWorldError) as error, Machine(nowhere):
        pass
    assert error.value.code == "firmware_forged"


def test_firmware_that_another_key_signed_is_not_started(nowhere: Images) -> None:
    images_of(RAM, 1)
    boot_rom.sign(nowhere.firmware, nowhere.firmware_key.with_name("another.key"))
    with pytest.raises(NormalWorldError, match="not the one that was signed"), Machine(nowhere):
        pass


def test_a_machine_that_does_not_boot_says_its_last_words() -> None:
    images = images_of(RAM, 1)
    descriptors = len(os.listdir("/proc/self/fd"))
    with (
        pytest.raises(NormalWorldError, match="Kernel panic") as error,
        Machine(dataclasses.replace(images, initrd=images.devicetree), ram_bytes=RAM, cpus=1),
    ):
        pass
    assert error.value.code == "no_boot"
    assert eventually(lambda: len(os.listdir("/proc/self/fd")) == descriptors), "descriptors were left open"


def test_a_file_that_is_missing_is_named(nowhere: Images) -> None:
    missing = dataclasses.replace(nowhere, kernel=Path("/nowhere/vmlinuz"))
    with pytest.raises(NormalWorldError, match="Cannot load /nowhere/vmlinuz"), Machine(missing):
        pass


def test_an_emulator_that_gives_up_says_why(nowhere: Images, tmp_path: Path) -> None:
    images_of(RAM, 1)
    folder = dataclasses.replace(nowhere, kernel=tmp_path)
    with pytest.raises(NormalWorldError, match="Cannot load") as error, Machine(folder):
        pass
    assert "ended with status 1" in error.value.message


def test_a_machine_boots_serves_its_mailbox_and_leaves_no_process() -> None:
    with booted(RAM, 1) as it:
        assert it.boot_seconds < 60
        assert it.agent.ask("ping") == {}
        state = it.monitor()
        assert sum(state.pages.values()) == RAM
        assert state.pages["NORMAL"] + state.pages["MONITOR"] == RAM
        assert 0 < it.memory().sample().available < RAM
        pid = it.pid
    assert is_gone(pid)


def test_a_machine_has_its_npu_beside_it_and_ends_with_it() -> None:
    with booted(RAM, 1, npu=True) as it:
        device = _child_that_runs("flexserve.emulator.npu")
        os.kill(device, signal.SIGKILL)
        assert eventually(lambda: not it.alive)
        with pytest.raises(MachineGoneError, match="because its NPU did, with status -9"):
            it.require_alive()
    with booted(RAM, 1, npu=True) as it:
        device = _child_that_runs("flexserve.emulator.npu")
        it.require_alive()
    assert is_gone(device)


def _child_that_runs(module: str) -> int:
    """Return the one child of this process that runs a Python module."""
    words = (
        (path, path.read_text().split("\0"))
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if _is_ours(path)
    )
    (found,) = [int(path.parent.name) for path, line in words if module in line]
    return found


def _is_ours(path: Path) -> bool:
    try:
        return f"\nPPid:\t{os.getpid()}\n" in (path.parent / "status").read_text()
    except OSError:
        return False


def test_protection_goes_when_nothing_is_held_and_comes_back_with_the_next_grant() -> None:
    with booted(RAM, 2) as it:
        it.agent.ask("write", "/sys/module/flexmem/parameters/idle_ms", "200")
        ram, doorbell = (os.dup(fd) for fd in it.secure_fds)
        pages = pages_of(ram, doorbell)
        pages.start()
        for times in (1, 2):
            runs = pages.take(512)
            assert it.monitor().pages[PageState.SECURE.name] == 512 * 4096
            pages.give_back(runs)
            assert eventually(lambda count=times: it.agent.ask("flexmem")["relaxes"] == count, within=20)  # type: ignore[misc]
    os.close(ram)
