"""The table of requests: one number, one request."""

from __future__ import annotations

import pytest

from flexserve.errors import PeerError
from flexserve.trusted.requests.registry import Registry


def test_a_request_is_there_from_its_admission_to_its_end() -> None:
    registry = Registry[str]()
    registry.admit(1, "one")
    assert (registry[1], registry.get(1), registry.get(2)) == ("one", "one", None)
    assert registry.end(1) == "one"
    assert registry.end(1) is registry.get(1) is None
    with pytest.raises(KeyError):
        registry[1]


def test_a_number_that_is_taken_is_refused_and_names_who_had_it() -> None:
    registry = Registry[str]()
    registry.admit(1, "one")
    with pytest.raises(PeerError):
        registry.admit(1, "another")
    assert registry[1] == "one"
    registry.end(1)
    registry.admit(1, "another")
    assert registry[1] == "another"
