"""Whatever bytes stand where a licence, an entry or a vendor's block should: an error of ours, and no key."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vendors import Vendor, put

from flexserve.errors import CallerError, StoredDataError
from flexserve.testing.licensed_device import LicensedDevice
from flexserve.trusted.store.manifest import BLOCK_SIZE
from flexserve.vendor.content import read_content
from flexserve.vendor.licensing import load_evidence

PATCHES = st.lists(st.tuples(st.integers(0, BLOCK_SIZE - 1), st.binary(min_size=1, max_size=40)), max_size=4)
REFUSED = (StoredDataError, CallerError)


def patched(data: bytes, patches: list[tuple[int, bytes]]) -> bytes:
    changed = bytearray(data)
    for at, piece in patches:
        place = at % len(changed)
        changed[place : place + len(piece)] = piece
    return bytes(changed)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.sampled_from(["block", "licence", "entry"]), patches=PATCHES, junk=st.binary(max_size=200))
def test_nothing_but_what_was_signed_unlocks(
    vendor: Vendor, device: LicensedDevice, which: str, patches: list[tuple[int, bytes]], junk: bytes
):
    flex = vendor.seal(1)
    models = device.store.root / "models"
    if not (models / "model.flex").exists():
        put(flex, vendor.license(flex, device), device)
    block = read_content(flex)
    parts = {
        "block": block.data,
        "licence": (models / f"{block.manifest.model_id}.licence").read_bytes(),
        "entry": (models / "model.ledger").read_bytes(),
    }
    assert device.unlock(*parts.values()).key == vendor.keys.content(block.manifest.id_bytes).key
    for changed in (patched(parts[which], patches), junk, parts[which] + junk, parts[which][: len(junk)]):
        if changed != parts[which]:
            with pytest.raises(REFUSED):
                device.unlock(*(parts | {which: changed}).values())


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 9999, b'{"chain": "x", "token": ""}', b"\xff" * 100])
def test_what_is_no_evidence_is_said(tmp_path: Path, data: bytes):
    path = tmp_path / "evidence"
    path.write_bytes(data)
    with pytest.raises(CallerError, match="is no evidence"):
        load_evidence(path)
