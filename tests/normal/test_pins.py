"""Pinned models survive the server, and a damaged file is an error that says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexserve.errors import CallerError, NormalWorldError
from flexserve.normal.pins import Pins
from flexserve.protocol.bounds import MAX_PINS


def test_pins_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "config" / "pins.json"
    assert Pins(path).names == ()
    Pins(path).replace(["b", "a", "b"])
    assert Pins(path).names == ("a", "b")
    assert [entry.name for entry in path.parent.iterdir()] == ["pins.json"]


def test_too_many_pins_change_nothing(tmp_path: Path) -> None:
    pins = Pins(tmp_path / "pins.json")
    pins.replace(["a"])
    with pytest.raises(CallerError):
        pins.replace(map(str, range(MAX_PINS + 1)))
    assert pins.names == Pins(tmp_path / "pins.json").names == ("a",)


def test_pins_that_cannot_be_written_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    pins = Pins()
    pins._path = tmp_path / "file" / "pins.json"
    with pytest.raises(NormalWorldError, match="cannot be written"):
        pins.replace(["a"])
    assert pins.names == ()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_any_file_is_pins_or_a_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pins.json"
    path.write_bytes(content)
    try:
        names = Pins(path).names
    except CallerError:
        return
    assert all(0 < len(name) <= 128 for name in names)
