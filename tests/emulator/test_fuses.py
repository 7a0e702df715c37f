"""What a machine is given of a device: by a process that has the key, and nobody else."""

from __future__ import annotations

import os
import types
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flexserve.emulator import boot_rom, fuses, secure_os
from flexserve.emulator import device as device_module
from flexserve.emulator.device import Device
from flexserve.emulator.handed_on import handed_on
from flexserve.errors import CallerError, NormalWorldError
from flexserve.trusted.store.derived import block_name
from flexserve.trusted.store.keys import DeviceKey
from flexserve.trusted.store.manifest import read_block
from flexserve.trusted.store.store import Store

MODEL = Path(__file__).parents[2] / "models/tiny/flexserve-tiny.gguf"
IMAGE = secure_os.firmware_with(b"firmware", b"FLEXSEOS, a secure OS", b"an application")


@pytest.fixture
def images(tmp_path: Path) -> Any:
    """The parts of a machine's image, built and signed."""
    firmware, key, el2 = (tmp_path / name for name in ("firmware", "firmware.key", "el2"))
    firmware.write_bytes(IMAGE)
    el2.write_bytes(b"a monitor")
    boot_rom.sign(firmware, key)
    return types.SimpleNamespace(firmware=firmware, firmware_key=key, el2=el2)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    """A device whose store has a model."""
    device = Device(tmp_path / "device.key", tmp_path / "store")
    Store(device.store, DeviceKey.load_or_create(device.key)).add(MODEL, "tiny", lambda _done, _total: None)
    return device


def expected(images: Any, device: Device) -> Any:
    image, started = boot_rom.verified(images.firmware, images.firmware_key)
    key = DeviceKey.load(device.key)
    return handed_on(key.attestation_root, image, images.el2.read_bytes(), started.authority), started


def test_the_image_gets_the_applications_secret_and_the_store_its_blocks(images: Any, device: Device) -> None:
    handed, started = expected(images, device)
    image = os.memfd_create("firmware")
    os.write(image, IMAGE)
    said = device.provision(images, image, started)
    place = IMAGE.index(b"FLEXSEOS") + 24 + 32
    assert os.pread(image, 32, place) == handed.secret
    os.close(image)
    assert msgspec.msgpack.decode(said.identity) == [handed.chain, handed.measurements]
    assert handed.secret not in said.identity
    [manifest] = Store(device.store, DeviceKey.load(device.key)).list()
    block = (device.store / "images" / block_name(manifest.model_id)).read_bytes()
    assert read_block(block, DeviceKey(handed.secret)).digest == manifest.digest


def test_blocks_are_made_once_and_go_with_their_model(images: Any, device: Device) -> None:
    started = expected(images, device)[1]
    assert provisioned(images, device, started.digest).blocks == 1
    assert provisioned(images, device, started.digest).blocks == 0
    store = Store(device.store, DeviceKey.load(device.key))
    store.remove("tiny")
    assert not list((device.store / "images").iterdir())


def test_another_image_has_blocks_of_its_own(images: Any, device: Device) -> None:
    provisioned(images, device, expected(images, device)[1].digest)
    images.firmware.write_bytes(secure_os.firmware_with(b"firmware", b"FLEXSEOS, a secure OS", b"another"))
    boot_rom.sign(images.firmware, images.firmware_key)
    assert provisioned(images, device, expected(images, device)[1].digest).blocks == 1


def test_a_firmware_that_was_replaced_while_it_runs_gets_nothing(images: Any, device: Device) -> None:
    with pytest.raises(NormalWorldError, match="replaced"):
        provisioned(images, device, bytes(64))
    assert not list((device.store / "images").iterdir())


def test_why_it_cannot_be_done_is_said_as_by_any_other(images: Any, device: Device) -> None:
    started = expected(images, device)[1]
    device.key.unlink()
    with pytest.raises(CallerError) as error:
        device.provision(images, -1, started)
    assert error.value.code == "device_key_missing"


def test_who_takes_too_long_is_given_up(images: Any, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    started = expected(images, device)[1]
    monkeypatch.setattr(device_module, "_PATIENCE", 0.001)
    with pytest.raises(NormalWorldError, match="within"):
        device.provision(images, -1, started)


def provisioned(images: Any, device: Device, digest: bytes) -> Any:
    return fuses.provision(
        *(device.key, device.store, images.firmware, images.firmware_key, images.el2),
        digest=digest,
        descriptor=-1,
    )
