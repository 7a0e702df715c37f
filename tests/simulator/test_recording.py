"""The log of a server as a load for the simulator."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexserve.errors import CallerError
from flexserve.simulator import recording
from flexserve.units import GIB, MIB

SIZES = {"llama": 1 << 30}
SAMPLE = {
    "event": "memory_sample",
    "timestamp": "2026-01-01T00:00:00Z",
    "total": 8 * GIB,
    "available": 5 * GIB,
    "free": GIB,
    "refaulted": 0,
    "used": GIB,
}
REQUEST = {
    "event": "request",
    "timestamp": "2026-01-01T00:01:00Z",
    "ms": 2500.0,
    "model": "llama",
    "prompt_tokens": 9,
    "completion_tokens": 4,
}


def read(*entries, sizes=SIZES):
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    return recording.read(lines, sizes, "serve.log")


def test_requests_and_samples_become_a_load():
    load = read(SAMPLE, REQUEST)
    assert load.memory == 8 * GIB
    assert [(each.at, each.model, each.prompt, each.answer) for each in load.requests] == [
        (57.5, "llama", 9, 4)
    ]
    assert [(each.at, each.others.own) for each in load.changes] == [(0.0, 2 * GIB)]
    assert load.hours == pytest.approx(120 / 3600)


def test_what_others_read_back_means_that_their_files_did_not_fit():
    later = SAMPLE | {"timestamp": "2026-01-01T00:00:30Z", "refaulted": 300 * MIB}
    load = read(SAMPLE, later, REQUEST)
    assert load.changes[0].others.files == 0
    assert load.changes[1].others.files > 6 * GIB
    assert load.changes[1].others.speed > 10e6


def test_other_lines_of_the_log_are_skipped():
    other = {"event": "secure_world_ready", "pid": 3, "timestamp": "2026-01-01T00:00:30Z"}
    unanswered = {"event": "request", "route": "/health", "timestamp": "2026-01-01T00:00:31Z"}
    assert len(read(SAMPLE, other, unanswered, REQUEST).requests) == 1


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{", "it is not JSON"),
        ("[]", "it is not an object"),
        ("{}", "event is missing"),
        (REQUEST | {"model": "other"}, "the size of the model 'other' is not known"),
        (REQUEST | {"prompt_tokens": -1}, "prompt_tokens is not a number from 0"),
        (REQUEST | {"prompt_tokens": "9"}, "prompt_tokens is not a number from 0"),
        (REQUEST | {"timestamp": "2025-01-01T00:00:00Z"}, "it is older than the line above it"),
        (REQUEST | {"timestamp": "yesterday"}, "Invalid isoformat"),
        (REQUEST | {"timestamp": 5}, "its timestamp is not a text"),
        (SAMPLE | {"used": 4 * GIB}, "more than the total"),
        (json.dumps(SAMPLE) + " " * recording.MAX_LINE, "it has more than"),
    ],
)
def test_a_broken_line_is_refused_with_its_number_and_the_reason(bad, reason):
    with pytest.raises(CallerError, match=r"^Line 2 of serve.log cannot be used: ") as caught:
        read(SAMPLE, bad, REQUEST)
    assert reason in caught.value.message
    assert caught.value.code == "bad_log"


@pytest.mark.parametrize(("entries", "lacking"), [((SAMPLE,), "request"), ((REQUEST,), "sample of memory")])
def test_a_log_without_requests_or_samples_is_refused(entries, lacking):
    with pytest.raises(CallerError, match=f"There is no {lacking}"):
        read(*entries)


@given(st.lists(st.one_of(st.text(max_size=40), st.binary(max_size=40).map(lambda b: b.decode("latin1")))))
def test_whatever_the_lines_are_they_are_read_or_refused(lines):
    with pytest.raises(CallerError):
        recording.read(lines, SIZES, "any")


@given(
    st.dictionaries(
        st.sampled_from(sorted({*SAMPLE, *REQUEST})),
        st.one_of(
            st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("request")
        ),
    )
)
def test_whatever_the_fields_are_they_are_read_or_refused(fields):
    with contextlib.suppress(CallerError):
        assert read(SAMPLE, SAMPLE | fields, REQUEST).requests
