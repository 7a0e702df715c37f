"""Hostile sealed requests by the thousand; a million by `python -m flexserve.testing.sealed_fuzz`."""

from __future__ import annotations

import pytest

from flexserve.testing import sealed_fuzz
from flexserve.trusted.sessions.seen import SeenRequests


def test_ten_thousand_hostile_bodies_are_refused_alike():
    assert sealed_fuzz.count_refused(10_000) == 10_000


def test_the_fuzzer_notices_a_world_that_takes_old_requests(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(SeenRequests, "admit", lambda *_: None)
    with pytest.raises(AssertionError):
        sealed_fuzz.count_refused(500)
