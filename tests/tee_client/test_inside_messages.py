"""The messages of the normal world are those of the application's header."""

from __future__ import annotations

import enum
import re
from pathlib import Path

import pytest

from flexserve.errors import PeerError
from flexserve.protocol.trusted_app import Kind
from flexserve.tee_client import messages
from flexserve.tee_client.messages import (
    Ask,
    Finish,
    Reply,
    Status,
    owner_numbers,
    packed,
    progress,
    unpacked,
)

APPLICATION = Path(__file__).parents[2] / "trusted-app"
HEADER = (APPLICATION / "messages.h").read_text()


def members(text: str, name: str) -> dict[str, int]:
    """Return the members of an enum of C++."""
    found = re.search(rf"enum class {name} : uint32_t {{(.*?)}};", text, re.DOTALL)
    assert found is not None
    return {name: int(value) for name, value in re.findall(r"(\w+) = (\d+)", found[1])}


@pytest.mark.parametrize(
    ("ours", "text"),
    [
        (Ask, HEADER),
        (Status, HEADER),
        (Finish, HEADER),
        (Kind, (APPLICATION / "engine.h").read_text()),
    ],
)
def test_the_enums_are_those_of_the_application(ours: type[enum.IntEnum], text: str) -> None:
    assert {member.name.lower(): member.value for member in ours} == members(text, ours.__name__)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("protocol_version", messages.VERSION),
        ("most_payload", messages.MOST_PAYLOAD),
        ("kept_part_bytes", messages.KEPT_PART),
    ],
)
def test_the_numbers_are_those_of_the_application(name: str, ours: int) -> None:
    found = re.search(rf"{name} = (\d+)(?: << (\d+))?;", HEADER)
    assert found is not None
    assert int(found[1]) << int(found[2] or 0) == ours


def test_what_is_about_memory_is_what_the_application_answers_in_a_step() -> None:
    source = (APPLICATION / "service.cpp").read_text()
    body = re.search(r"bool is_about_memory\(Ask kind\) {(.*?)}", source, re.DOTALL)
    assert body is not None
    assert set(re.findall(r"Ask::(\w+)", body[1])) == {ask.name.lower() for ask in messages.ABOUT_MEMORY}


def test_numbers_come_back_as_they_went() -> None:
    assert unpacked(packed([0, 7, (1 << 32) - 1])) == [0, 7, (1 << 32) - 1]


@pytest.mark.parametrize("payload", [b"odd", packed([0, 1, 2, 99]), packed([0, 1])])
def test_a_progress_that_is_none_breaks_the_protocol(payload: bytes) -> None:
    with pytest.raises(PeerError, match="broke the protocol"):
        progress(Reply(Status.DONE, (), payload))


def test_numbers_that_are_cut_off_break_the_protocol() -> None:
    with pytest.raises(PeerError, match="cut off"):
        unpacked(b"12345")


def test_no_owner_passes_for_one_of_sealed_requests() -> None:
    owners = [owner_numbers(f"owner {number}") for number in range(64)]
    assert len(set(owners)) == len(owners)
    assert max(second for _, second in owners) < 1 << 63
