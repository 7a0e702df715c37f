"""A vendor for tests: sealed models, licences and evidence, with what would be said between the two sides."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from flexserve.attestation.policy import Policy
from flexserve.attestation.verification import Verified, verify
from flexserve.testing.licensed_device import LicensedDevice
from flexserve.vendor.content import Block, read_content, seal_content
from flexserve.vendor.device import adopt
from flexserve.vendor.keys import VendorKeys
from flexserve.vendor.licensing import Evidence, Terms, issue

NOW = 1_800_000_000  # seconds since 1970
DAY = 24 * 3600


def quiet(_done: int, _total: int) -> None:
    """Say nothing of progress."""


class Vendor:
    """A vendor whose keys and files are in `folder`, and whose clock stands."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.keys, self._folder, self._source = VendorKeys.make(folder / "keys"), folder, source
        self.now = float(NOW)

    def seal(self, version: int, name: str = "model") -> Path:
        """Return the file of a version."""
        path = self._folder / f"{name}-{version}.flex"
        if not path.exists():
            seal_content(self._source, path, self.keys, name=name, version=version, progress=quiet)
        return path

    def license(self, flex: Path, device: LicensedDevice, **terms: Any) -> bytes:
        """Return a licence for a device, good for a day unless `terms` say otherwise."""
        content = self.keys.content(read_content(flex).manifest.id_bytes)
        return issue(self.keys, content, verified(device), Terms(**{"seconds": DAY, **terms}), now=self.now)


def evidence(device: LicensedDevice, nonce: bytes) -> Evidence:
    """Return what a device says to a nonce."""
    said = device.attest(nonce)
    return Evidence(said.chain, said.token)


def verified(device: LicensedDevice) -> Verified:
    """Return a device as a vendor that trusts it has verified it."""
    nonce = secrets.token_bytes(32)
    said = device.attest(nonce)
    return verify(said.chain, said.token, nonce, Policy(emulated="allow"))


def policy_for(*devices: LicensedDevice) -> Policy:
    """Return the policy that calls these devices good."""
    return Policy(emulated="allow", roots=[verified(device).root.hex() for device in devices])


def put(flex: Path, licence: bytes, device: LicensedDevice) -> Block:
    """Add a vendor's model to the store of a device."""
    block = read_content(flex)
    adopt(device.store.root / "models", flex, block, licence, device=device, progress=quiet)
    return block


def opened(device: LicensedDevice, name: str = "model") -> bytes:
    """Return all of a model, as its device opens it."""
    with device.store.open(name) as model:
        data = bytearray(model.manifest.size)
        model.read_into(0, memoryview(data))
        return bytes(data)
