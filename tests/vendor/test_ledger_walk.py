"""Random walks: versions and licences come, are put back and expire, and the judge follows a model of it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import gguf
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule
from vendors import NOW, Vendor

from flexserve.errors import FlexServeError
from flexserve.testing.licensed_device import LicensedDevice
from flexserve.trusted.store.licences import Entry, write_entry
from flexserve.vendor.content import read_content

_VERSIONS = st.integers(1, 3)


def small(folder: Path) -> Path:
    """Return a GGUF of one chunk."""
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Ledger(RuleBasedStateMachine):
    """The reference: (version, issued) must not be below what the entry shown, or this holder, has seen."""

    licences = Bundle("licences")  # (version, issued, expires, signed)
    entries = Bundle("entries")  # (version, issued, seen, signed)

    @initialize(target=entries)
    def begin(self):
        self._folder = tempfile.TemporaryDirectory(prefix="flexserve-ledger-")
        folder = Path(self._folder.name)
        self.now = NOW
        self.vendor = Vendor(folder / "vendor", small(folder))
        self.device = LicensedDevice(folder / "device", clock=lambda: self.now)
        self.remembered = (0, 0, 0)
        return 0, 0, 0, write_entry(Entry("model", self.vendor.keys.public), self.device)

    def teardown(self):
        if hasattr(self, "_folder"):
            self._folder.cleanup()

    @rule(target=licences, version=_VERSIONS, seconds=st.integers(1, 300))
    def license(self, version: int, seconds: int):
        self.vendor.now += 1
        signed = self.vendor.license(self.vendor.seal(version), self.device, seconds=seconds)
        return version, int(self.vendor.now * 1000), int(self.vendor.now) + seconds, signed

    @rule(by=st.integers(-400, 400))
    def turn_the_clock(self, by: int):
        self.now += by

    @rule()
    def restart(self):
        self.device.restart()
        self.remembered = (0, 0, 0)

    @rule(target=entries, licence=licences, entry=entries)
    def open(self, licence, entry):
        version, issued, expires, signed = licence
        block = read_content(self.vendor.seal(version)).data
        known = max(entry[:3], self.remembered)
        seen = known[2] if issued == known[1] else 0
        moment = max(self.now, issued // 1000, seen)
        good = version >= known[0] and issued >= known[1] and moment < expires
        try:
            unlocked = self.device.unlock(block, signed, entry[3])
        except FlexServeError:
            assert not good
            return entry
        assert good
        kept = moment if moment >= seen + 60 else seen
        self.remembered = version, issued, kept
        return version, issued, kept, unlocked.entry


TestLedger = Ledger.TestCase
TestLedger.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
