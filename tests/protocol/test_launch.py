"""The launch contract: what one world writes, the other reads, and nothing else is believed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexserve.errors import CallerError
from flexserve.protocol.launch import SecureOptions, descriptors

NEEDED = ["--store", "/models", "--device-key", "/key"]
PATHS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).map(Path)


@given(
    store=PATHS,
    memory=st.sampled_from(["secret", "plain", "trustzone"]),
    threads=st.integers(0, 1 << 31),
    step_seconds=st.floats(0, 1e9),
    npu_driver=st.binary(max_size=32),
)
def test_what_is_written_is_read_again(**options) -> None:
    written = SecureOptions(device_key=Path("/key"), **options)
    assert SecureOptions.parse(written.words()) == written


def test_what_nobody_says_is_as_usual() -> None:
    assert SecureOptions.parse(NEEDED) == SecureOptions(Path("/models"), Path("/key"))


def test_of_an_option_that_comes_twice_the_last_counts() -> None:
    assert SecureOptions.parse([*NEEDED, "--threads", "1", "--threads", "2"]).threads == 2


@pytest.mark.parametrize(
    "words",
    [
        NEEDED[:2],
        [*NEEDED, "--threads"],
        [*NEEDED, "--threads", "many"],
        [*NEEDED, "--memory", "any"],
        [*NEEDED, "--unheard-of", "1"],
        [*NEEDED, "threads", "1"],
        [*NEEDED, "--npu-driver", "?"],
    ],
)
def test_words_that_are_not_clear_are_the_callers_mistake(words: list[str]) -> None:
    with pytest.raises(CallerError):
        SecureOptions.parse(words)


def test_the_descriptors_that_are_inherited_are_those_that_are_given() -> None:
    options = SecureOptions(Path(), Path(), channel_fd=5, ram_fd=0)
    assert options.fds == (5, 0)


def test_every_descriptor_on_the_command_line_is_kept_open():
    words = ["--channel-fd", "5", "--store", "/9", "--ram-fd", "-1", "--options-fd", "6"]
    assert descriptors(words) == {5, 6}
