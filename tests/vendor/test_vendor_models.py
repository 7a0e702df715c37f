"""One file of a vendor's, many devices: who opens it, and what each refusal says."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path

import pytest
from vendors import DAY, NOW, Vendor, evidence, opened, put, quiet, verified

from flexserve.errors import CallerError, FlexServeError, StoredDataError
from flexserve.testing.licensed_device import LicensedDevice
from flexserve.trusted.store import DeviceKey, Store
from flexserve.trusted.store.aead import TAG_SIZE
from flexserve.trusted.store.manifest import BLOCK_SIZE, CHUNK
from flexserve.vendor.content import check_content, read_content
from flexserve.vendor.device import key_of


def refusal(device: LicensedDevice, name: str = "model") -> FlexServeError:
    with pytest.raises(FlexServeError) as refused:
        opened(device, name)
    return refused.value


def files(device: LicensedDevice) -> dict[str, bytes]:
    """Return all that a hostile host could keep of a model, and put back later."""
    return {path.name: path.read_bytes() for path in (device.store.root / "models").iterdir()}


def put_back(device: LicensedDevice, kept: dict[str, bytes], *, but: str = "-") -> None:
    for name, data in kept.items():
        if not name.endswith(but):
            (device.store.root / "models" / name).write_bytes(data)


def test_two_devices_open_the_same_file_each_by_its_own_licence(
    vendor: Vendor, device: LicensedDevice, other: LicensedDevice, source: Path
):
    flex = vendor.seal(1)
    for each in (device, other):
        put(flex, vendor.license(flex, each), each)
        assert opened(each) == source.read_bytes()
        assert (each.store.root / "models" / "model.flex").read_bytes() == flex.read_bytes()


def test_a_file_says_nothing_of_the_weights_to_who_has_no_licence(vendor: Vendor, source: Path):
    sealed, weights = vendor.seal(1).read_bytes(), source.read_bytes()
    assert not any(weights[at : at + 16] in sealed for at in range(4096, len(weights), 65536))


def test_what_is_kept_of_a_model_on_a_device_is_no_other_devices_and_no_vendors(
    vendor: Vendor, device: LicensedDevice, other: LicensedDevice
):
    flex = vendor.seal(1)
    keys = []
    for each in (device, other):
        block = put(flex, vendor.license(flex, each), each)
        with each.store.open("model") as model:
            keys.append(model.model_key)
    assert keys[0] != keys[1]
    assert vendor.keys.content(block.manifest.id_bytes).key not in keys


def test_a_licence_of_another_device_is_refused_and_spoils_nothing(
    vendor: Vendor, device: LicensedDevice, other: LicensedDevice
):
    flex = vendor.seal(1)
    good = vendor.license(flex, device)
    vendor.now += 10
    put(flex, vendor.license(flex, other), device)
    error = refusal(device)
    assert error.code == "licence_other_device"
    assert "device: expected" in error.message
    block = read_content(flex)
    (device.store.root / "models" / f"{block.manifest.model_id}.licence").write_bytes(good)
    assert opened(device)


def test_a_licence_is_for_the_software_that_was_attested(vendor: Vendor, device: LicensedDevice):
    flex = vendor.seal(1)
    put(flex, vendor.license(flex, device), device)
    device.measured({"flexserve": b"g" * 64})
    assert refusal(device).code == "licence_other_device"
    vendor.now += 1
    put(flex, vendor.license(flex, device), device)
    assert opened(device)


def test_every_altered_byte_of_a_licence_is_noticed(vendor: Vendor, device: LicensedDevice):
    flex = vendor.seal(1)
    licence = vendor.license(flex, device)
    block = put(flex, licence, device)
    path = device.store.root / "models" / f"{block.manifest.model_id}.licence"
    for at in (*range(0, len(licence), 97), len(licence) - 1):
        path.write_bytes(licence[:at] + bytes([licence[at] ^ 1]) + licence[at + 1 :])
        assert refusal(device).code == "licence_forged", at
    path.write_bytes(licence[:-1])
    assert refusal(device).code == "licence_forged"
    path.unlink()
    assert refusal(device).code == "licence_missing"


def test_a_licence_opens_no_other_version(vendor: Vendor, device: LicensedDevice):
    old, new = vendor.seal(1), vendor.seal(2)
    put(new, vendor.license(old, device), device)
    error = refusal(device)
    assert error.code == "licence_other_model"
    assert "version: expected 1, found 2" in error.message


def test_an_older_version_is_refused_once_a_newer_one_was_opened(vendor: Vendor, device: LicensedDevice):
    put(vendor.seal(1), vendor.license(vendor.seal(1), device), device)
    assert opened(device)
    kept = files(device)
    put(vendor.seal(2), vendor.license(vendor.seal(2), device), device)
    assert opened(device)
    put_back(device, kept, but=".ledger")
    device.restart()
    assert refusal(device).code == "licence_rolled_back"
    assert device.store.damaged()["model"].code == "licence_rolled_back"
    with pytest.raises(StoredDataError, match="Rolled back: version 1 of model was opened after version 2"):
        device.store.manifest("model")


def test_an_older_licence_is_refused_once_a_newer_one_was_used(vendor: Vendor, device: LicensedDevice):
    flex = vendor.seal(1)
    put(flex, vendor.license(flex, device), device)
    assert opened(device)
    kept = files(device)
    vendor.now += 1
    put(flex, vendor.license(flex, device, uses=("vectors",)), device)
    assert opened(device)
    put_back(device, kept, but=".ledger")
    device.restart()
    assert refusal(device).code == "licence_rolled_back"


def test_what_a_licence_allows_is_judged_anew_whenever_its_file_changes(
    vendor: Vendor, device: LicensedDevice, other: LicensedDevice
):
    flex = vendor.seal(1)
    block = put(flex, vendor.license(flex, device, uses=("text", "vectors")), device)
    path = device.store.root / "models" / f"{block.manifest.model_id}.licence"
    old = path.read_bytes()
    vendor.now += 1
    put(flex, vendor.license(flex, device, uses=("ranks",)), device)
    new = path.read_bytes()
    with device.store.open("model"):  # as it is while it is served
        for good in (new, new):
            path.write_bytes(good)
            terms = device.store.terms("model")
            assert terms is not None
            assert terms.uses == ("ranks",)
            for bad in (old, vendor.license(flex, other), b""):
                path.write_bytes(bad)
                with pytest.raises(FlexServeError):
                    device.store.terms("model")


def test_who_puts_everything_back_is_refused_by_the_holder_that_saw_more_and_only_by_that(
    vendor: Vendor, device: LicensedDevice
):
    put(vendor.seal(1), vendor.license(vendor.seal(1), device), device)
    assert opened(device)
    kept = files(device)
    put(vendor.seal(2), vendor.license(vendor.seal(2), device), device)
    assert opened(device)
    put_back(device, kept)
    assert refusal(device).code == "licence_rolled_back"
    device.restart()
    assert opened(device), "the threat model says that nothing outlives the process"


def test_without_its_entry_or_with_that_of_another_device_no_vendor_is_trusted(
    vendor: Vendor, device: LicensedDevice, other: LicensedDevice
):
    flex = vendor.seal(1)
    for each in (device, other):
        put(flex, vendor.license(flex, each), each)
    entry = device.store.root / "models" / "model.ledger"
    entry.write_bytes((other.store.root / "models" / "model.ledger").read_bytes())
    assert refusal(device).code == "unknown_vendor"
    entry.unlink()
    assert refusal(device).code == "unknown_vendor"


def test_another_vendors_model_under_the_name_is_refused(
    vendor: Vendor, device: LicensedDevice, tmp_path: Path, source: Path
):
    flex = vendor.seal(1)
    put(flex, vendor.license(flex, device), device)
    stranger = Vendor(tmp_path / "stranger", source)
    forged = stranger.seal(9)
    with pytest.raises(CallerError, match="another model named model"):
        put(forged, stranger.license(forged, device), device)
    models = device.store.root / "models"
    shutil.copy(forged, models / "model.flex")
    block = read_content(forged)
    (models / f"{block.manifest.model_id}.licence").write_bytes(stranger.license(forged, device))
    error = refusal(device)
    assert error.code == "unknown_vendor"
    assert f"expected {vendor.keys.public}, found {stranger.keys.public}" in error.message


def test_a_licence_ends_and_a_clock_that_is_turned_back_does_not_help(
    vendor: Vendor, device: LicensedDevice, clock
):
    flex = vendor.seal(1)
    put(flex, vendor.license(flex, device), device)
    clock.now = NOW + DAY - 1
    assert opened(device)
    clock.now = NOW
    device.restart()
    assert opened(device)
    clock.now = NOW + DAY
    assert refusal(device).code == "licence_expired"
    clock.now = NOW - 365 * DAY  # and what was seen so far counts
    vendor.now += 1
    put(flex, vendor.license(flex, device, seconds=1), device)
    assert opened(device), "it is not earlier than the licence itself says"


def test_time_that_was_seen_counts_until_a_newer_licence_comes(vendor: Vendor, device: LicensedDevice, clock):
    flex = vendor.seal(1)
    short = vendor.license(flex, device, seconds=100)
    put(flex, short, device)
    clock.now = NOW + 99
    assert opened(device)
    ledger = device.store.root / "models" / "model.ledger"
    assert str(NOW + 99).encode() in ledger.read_bytes()
    clock.now = 10**10  # a clock that is wrong once must not lock the device out for ever
    long = vendor.license(flex, device, seconds=10**10)
    vendor.now += 1
    newer = vendor.license(flex, device)
    put(flex, long, device)
    assert opened(device)
    clock.now = NOW + 10
    put(flex, newer, device)
    assert opened(device)


def test_chunks_that_are_exchanged_repeated_or_cut_off_are_noticed(vendor: Vendor, device: LicensedDevice):
    flex = vendor.seal(1)
    put(flex, vendor.license(flex, device), device)
    whole, size = flex.read_bytes(), CHUNK + TAG_SIZE
    head, first, second = whole[:BLOCK_SIZE], whole[BLOCK_SIZE:][:size], whole[BLOCK_SIZE + size :][:size]
    rest, path = whole[BLOCK_SIZE + 2 * size :], device.store.root / "models" / "model.flex"
    for altered in (head + second + first + rest, head + first + first + rest):
        path.write_bytes(altered)
        assert "out of place" in refusal(device).message
    path.write_bytes(whole[:-1])
    assert "bytes and should have" in refusal(device).message


def test_a_file_is_checked_without_a_key_before_it_is_added(vendor: Vendor, device: LicensedDevice):
    flex = vendor.seal(1)
    data = bytearray(flex.read_bytes())
    data[-1] ^= 1
    flex.write_bytes(data)
    with pytest.raises(CallerError, match="content: expected"):
        check_content(flex, read_content(flex), quiet)
    with pytest.raises(CallerError, match="tampered"):
        put(flex, vendor.license(flex, device), device)
    assert files(device) == {}


def test_a_block_that_the_vendor_did_not_sign_is_refused(vendor: Vendor, tmp_path: Path):
    data = bytearray(vendor.seal(1).read_bytes())
    for at in (40, BLOCK_SIZE - 1):
        altered = tmp_path / "altered.flex"
        altered.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(StoredDataError, match="not signed by the key that it names"):
            read_content(altered)


def test_a_newer_version_takes_the_place_of_an_older_one_and_not_the_other_way_round(
    vendor: Vendor, device: LicensedDevice
):
    for version in (1, 2):
        put(vendor.seal(version), vendor.license(vendor.seal(version), device), device)
    assert sorted(path.suffix for path in (device.store.root / "models").iterdir()) == [
        ".flex", ".ledger", ".licence", ".lock",
    ]  # fmt: skip
    assert (sold := device.store.manifest("model").vendor) is not None
    assert sold.version == 2
    with pytest.raises(StoredDataError, match="version: expected 2 or later, found 1"):
        put(vendor.seal(1), vendor.license(vendor.seal(1), device), device)
    assert opened(device)


def test_an_older_licence_does_not_take_the_place_of_a_newer_one(vendor: Vendor, device: LicensedDevice):
    flex = vendor.seal(1)
    old = vendor.license(flex, device)
    vendor.now += 1
    put(flex, vendor.license(flex, device), device)
    with pytest.raises(StoredDataError, match="Rolled back: the licence"):
        put(flex, old, device)
    assert opened(device)


def test_removing_a_model_takes_its_licence_along_and_leaves_what_was_seen(
    vendor: Vendor, device: LicensedDevice
):
    for version in (1, 2):
        put(vendor.seal(version), vendor.license(vendor.seal(version), device), device)
        assert opened(device)
    device.store.remove("model")
    assert sorted(path.suffix for path in (device.store.root / "models").iterdir()) == [".ledger", ".lock"]
    with pytest.raises(StoredDataError, match="after version 2"):
        put(vendor.seal(1), vendor.license(vendor.seal(1), device), device)


def test_the_device_key_alone_opens_no_vendors_model_and_lists_it(
    vendor: Vendor, device: LicensedDevice, tmp_path: Path
):
    flex = vendor.seal(1)
    put(flex, vendor.license(flex, device), device)
    store = Store(device.store.root, DeviceKey.load(tmp_path / "one" / "device.key"))
    (listed,) = store.list()
    assert listed.vendor is not None
    licence = store.licence("model")
    assert licence is not None
    assert licence.root == verified(device).root
    with pytest.raises(CallerError, match="Only a secure world opens"):
        store.open("model")


def test_a_secure_world_that_opens_no_vendors_model_is_told_apart_on_its_own_device(
    device: LicensedDevice, monkeypatch: pytest.MonkeyPatch
):
    nonce = bytes(32)
    said = evidence(device, nonce)
    assert key_of(said, nonce) == hashlib.sha256(verified(device).licences).digest()
    without = dataclasses.replace(verified(device), licences=b"")  # as of a world inside of the machine
    monkeypatch.setattr("flexserve.vendor.device.verify", lambda *_: without)
    with pytest.raises(CallerError, match="opens no vendor's model") as refused:
        key_of(said, nonce)
    assert "--secure-world host" in refused.value.hint
