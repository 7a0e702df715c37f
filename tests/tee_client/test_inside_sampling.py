"""How the application is told to choose: in the form of its header, with the meaning that `linux` has."""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path

import pytest

from flexserve.errors import PeerError
from flexserve.protocol.sampling import SAMPLERS, LogitBias, SamplerName, Sampling
from flexserve.tee_client.messages import Reply, Status, packed
from flexserve.tee_client.sampling import (
    FLOATS,
    PLACES,
    SCORE,
    SETTINGS,
    SIGNED,
    WORDS,
    Choice,
    Score,
    admitted,
    said,
    settings,
)

HEADER = (Path(__file__).parents[2] / "trusted-app" / "messages.h").read_text()


def unpacked(payload: bytes) -> dict[str, float | list[Choice]]:
    """Return the numbers of settings by their names, and their samplers."""
    *numbers, samplers = SETTINGS.unpack_from(payload)
    chosen = [Choice(number) for number in samplers if number]
    return {**dict(zip((*WORDS, *SIGNED, *FLOATS), numbers, strict=True)), "samplers": chosen}


def scores(payload: bytes, count: int) -> list[tuple[int, float]]:
    """Return the biases of settings."""
    return [SCORE.unpack_from(payload, SETTINGS.size + SCORE.size * each) for each in range(count)]


def no_tokens(_text: str) -> list[int]:
    return []


# ---- the form ------------------------------------------------------------------------------------


def test_the_members_are_those_of_the_header() -> None:
    found = re.search(r"struct Sampling {(.*?)\n};", HEADER, re.DOTALL)
    assert found is not None
    named: dict[str, list[str]] = {}
    for kind, members in re.findall(r"(uint32_t|int32_t|float|Choice) (.*?);", found[1]):
        named.setdefault(kind, []).extend(re.findall(r"(\w+)(?:\[\d+\])? = ", members))
    assert named == {"uint32_t": [*WORDS], "int32_t": [*SIGNED], "float": [*FLOATS], "Choice": ["samplers"]}
    assert list(named) == ["uint32_t", "int32_t", "float", "Choice"]
    assert f"samplers[{PLACES}]" in found[1]


def test_the_samplers_are_those_of_the_header() -> None:
    found = re.search(r"enum class Choice : uint8_t {(.*?)}", HEADER, re.DOTALL)
    assert found is not None
    names = re.sub(r"//.*", "", found[1]).replace(",", " ").split()
    assert names == [choice.name.lower() for choice in Choice]
    assert [choice.name.lower() for choice in Choice][1 : len(SAMPLERS) + 1] == list(SAMPLERS)


# ---- the meaning ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampling", "samplers"),
    [
        (Sampling(), [*(Choice[name.upper()] for name in SAMPLERS), Choice.ANY]),
        (Sampling(samplers=["min_p", "temperature"]), [Choice.MIN_P, Choice.TEMPERATURE, Choice.ANY]),
        (Sampling(samplers=[]), [Choice.ANY]),
        (Sampling(mirostat=1, temperature=0), [Choice.TEMPERATURE, Choice.MIROSTAT]),
        (Sampling(mirostat=2), [Choice.TEMPERATURE, Choice.MIROSTAT_V2]),
        (Sampling(temperature=0, samplers=["top_k", "temperature"]), [Choice.TEMPERATURE, Choice.LIKELIEST]),
        (
            Sampling(temperature=0, samplers=["top_k", "penalties", "min_p", "temperature", "dry"]),
            [Choice.TOP_K, Choice.PENALTIES, Choice.TEMPERATURE, Choice.LIKELIEST],
        ),
        (
            Sampling(temperature=0, xtc_probability=0.5, samplers=["xtc", "temperature"]),
            [Choice.XTC, Choice.TEMPERATURE, Choice.ANY],
        ),
    ],
)
def test_the_last_sampler_chooses(sampling: Sampling, samplers: list[Choice]) -> None:
    assert unpacked(settings(sampling, no_tokens))["samplers"] == samplers


def test_all_samplers_have_places() -> None:
    twice: list[SamplerName] = ["temperature"] * len(SAMPLERS)
    payload = settings(Sampling(samplers=twice), no_tokens)
    assert unpacked(payload)["samplers"] == [Choice.TEMPERATURE] * len(SAMPLERS) + [Choice.ANY]


def test_numbers_are_what_was_asked_for() -> None:
    sampling = Sampling(seed=1 << 40, top_k=7, min_p=0.25, logprobs=4, ignore_eos=True, repeat_last_n=-1)
    found = unpacked(settings(sampling, no_tokens))
    assert (found["top_k"], found["min_p"], found["ignore_eos"], found["repeat_last_n"]) == (7, 0.25, 1, -1)
    assert found["seed"] == (1 << 40) % ((1 << 32) - 1)
    assert found["logprobs"] == 5


def test_no_seed_and_no_log_probabilities_have_numbers_of_their_own() -> None:
    found = unpacked(settings(Sampling(), no_tokens))
    assert (found["seed"], found["logprobs"]) == ((1 << 32) - 1, 0)


def test_biases_of_texts_are_those_of_their_tokens_and_stops_have_an_infinite_one() -> None:
    sampling = Sampling(
        logit_bias=[LogitBias("ab", 1.5), LogitBias(9, None)], stop_token_ids=[4], dry_sequence_breakers=[]
    )
    payload = settings(sampling, lambda text: [ord(letter) for letter in text])
    assert unpacked(payload)["biases"] == 4
    assert scores(payload, 4) == [(97, 1.5), (98, 1.5), (9, -math.inf), (4, math.inf)]
    assert len(payload) == SETTINGS.size + 4 * SCORE.size


def test_texts_that_end_a_repetition_end_with_a_zero() -> None:
    payload = settings(Sampling(dry_sequence_breakers=["é", "a\0b", "\0"]), no_tokens)
    assert payload[SETTINGS.size :] == "é".encode() + b"\0a\0"


def test_a_mask_has_a_bit_for_each_token() -> None:
    assert admitted([0, 9], 10) == bytes([1, 2])
    assert admitted([], 17) == bytes(3)


# ---- what was said -------------------------------------------------------------------------------


def reply(count: int, payload: bytes) -> Reply:
    return Reply(Status.DONE, (count, 0, 0, 0, 0), payload)


def test_tokens_come_with_their_scores() -> None:
    rows = [(7, -0.5), (8, -0.25), (7, -0.5), (9, -1.0), (9, -1.0), ((1 << 32) - 1, 0.0)]
    payload = packed([7, 9]) + b"".join(struct.pack("<If", *row) for row in rows)
    answered = said(reply(2, payload), 2)
    assert answered.tokens == [7, 9]
    assert answered.scores == [
        (Score(7, -0.5), [Score(8, -0.25), Score(7, -0.5)]),
        (Score(9, -1.0), [Score(9, -1.0)]),  # no other one was left
    ]


def test_tokens_come_without_scores_where_none_were_asked_for() -> None:
    answered = said(reply(2, packed([7, 9])), None)
    assert (answered.tokens, answered.scores) == ([7, 9], [])


@pytest.mark.parametrize(("count", "payload"), [(2, packed([7])), (1, packed([7, 8])), (1 << 60, b"")])
def test_tokens_that_do_not_fit_break_the_protocol(count: int, payload: bytes) -> None:
    with pytest.raises(PeerError, match="broke the protocol"):
        said(reply(count, payload), None)
