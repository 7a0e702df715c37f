"""Sealed requests and answers: what goes in comes out; whatever is changed on its way is refused."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexserve.errors import CallerError, PeerError
from flexserve.protocol.answers import Delta, Finished, Timings, Usage
from flexserve.protocol.framing import encode
from flexserve.protocol.messages import Query
from flexserve.protocol.prompts import TextPrompt
from flexserve.protocol.requests import Embed, Generate
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.sealed_answer import LARGE, LAST_SIZE, SMALL, FrameSealer, frame_size
from flexserve.protocol.sealed_answer_reader import FrameOpener
from flexserve.protocol.sealed_exchange import Exchange, named_secret, padded_size, seal, sealed_secret
from flexserve.protocol.sealed_request import (
    MAX_PADDED,
    MIN_PADDED,
    NAME,
    OVERHEAD,
    SEALED_SECRET,
    Content,
    header_of,
    name_of,
    open_request,
)
from flexserve.testing.sealing_key import FixedKey

KEY, OTHER = FixedKey(), FixedKey(bytes(range(1, 97)))
PUBLIC = KEY.public
TOKEN = b"t" * 32
REFUSED = "The sealed request was refused."
END = Finished(0, "stop", Usage(3, 2), Timings())


def question(text: str = "Where is the key?", **sampling: Any) -> Generate:
    return Generate(0, "tiny", TextPrompt(text), Sampling(**sampling))


def content(asked: Any) -> Content:
    return Content(bytes(16), 1, bytes(32), msgspec.msgpack.encode(asked))


@pytest.mark.parametrize(
    "asked", [question(), question("äöü" * 5000), Embed(0, "tiny", ["a", "b"]), Query(0)], ids=type
)
def test_what_is_sealed_comes_out_for_who_has_the_key(asked):
    exchange = Exchange(asked, b"o" * 32, PUBLIC, TOKEN, 17)
    opened = open_request(exchange.body, KEY.unseal)
    assert (opened.asked, opened.content.owner, opened.content.time) == (asked, b"o" * 32, 17)
    header = header_of(exchange.body)
    assert header.token_hash == TOKEN
    assert header.model == getattr(asked, "model", "")


def test_two_requests_share_neither_secret_nor_number():
    bodies = [Exchange(Query(0), bytes(32), PUBLIC, TOKEN, 1).body for _ in "ab"]
    first, second = (open_request(body, KEY.unseal) for body in bodies)
    assert first.secret != second.secret
    assert first.content.id != second.content.id


def test_a_secret_that_was_sealed_before_its_request_opens_like_any_other():
    secret = sealed_secret("tiny", PUBLIC, TOKEN)
    exchange = Exchange(question(), bytes(32), PUBLIC, TOKEN, 1, secret=secret)
    opened = open_request(exchange.body, KEY.unseal)
    assert (opened.asked, opened.secret) == (question(), secret.secret)
    assert secret.secret.hex() not in repr(secret)


def test_a_request_names_the_secret_that_an_earlier_one_brought_and_is_as_well_bound():
    first = Exchange(question(), bytes(32), PUBLIC, TOKEN, 1)
    secret = open_request(first.body, KEY.unseal).content.next
    known = {name_of(secret): secret}
    named = named_secret(first.next, "tiny", TOKEN)
    second = Exchange(question("And now?"), bytes(32), PUBLIC, TOKEN, 1, secret=named)
    assert open_request(second.body, lambda name, _info: known[name]).asked == question("And now?")
    assert len(first.body) - len(second.body) == SEALED_SECRET - NAME
    assert secret not in second.body
    for place in range(len(second.body)):
        changed = bytearray(second.body)
        changed[place] ^= 1
        with pytest.raises(CallerError, match=REFUSED):
            open_request(bytes(changed), lambda name, _info: known.get(name, bytes(32)))


def test_another_key_opens_nothing():
    with pytest.raises(CallerError, match=REFUSED):
        open_request(Exchange(question(), bytes(32), PUBLIC, TOKEN, 1).body, OTHER.unseal)


@given(st.data())
def test_no_bit_of_a_request_can_be_changed(data):
    body = bytearray(Exchange(question(), bytes(32), PUBLIC, TOKEN, 1).body)
    place = data.draw(st.integers(0, len(body) - 1))
    body[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(CallerError, match=REFUSED):
        open_request(bytes(body), KEY.unseal)


def test_a_request_names_its_model_outside_as_inside():
    body = seal(content(question()), sealed_secret("another", PUBLIC, TOKEN))
    with pytest.raises(CallerError, match=REFUSED):
        open_request(body, KEY.unseal)


def test_a_request_brings_no_number_of_its_own():
    numbered = msgspec.structs.replace(question(), request=5)
    with pytest.raises(CallerError, match=REFUSED):
        open_request(seal(content(numbered), sealed_secret("tiny", PUBLIC, TOKEN)), KEY.unseal)


@given(first=st.text(max_size=600), second=st.text(max_size=600))
def test_a_requests_size_is_a_power_of_two_above_it(first, second):
    sizes = [len(Exchange(question(text), bytes(32), PUBLIC, TOKEN, 1).body) for text in (first, second)]
    for size in sizes:
        padded = size - len(header_of(Exchange(question(), bytes(32), PUBLIC, TOKEN, 1).body).encoded())
        assert (padded - OVERHEAD).bit_count() == 1
    assert padded_size(1) == MIN_PADDED
    assert padded_size(MIN_PADDED - 4) == MIN_PADDED
    assert padded_size(MIN_PADDED - 3) == 2 * MIN_PADDED


def test_a_prompt_that_does_not_fit_is_its_senders_mistake():
    with pytest.raises(CallerError, match="too long"):
        Exchange(question("x" * MAX_PADDED), bytes(32), PUBLIC, TOKEN, 1)


@settings(max_examples=300)
@given(st.binary(max_size=3000))
def test_bytes_of_any_kind_are_refused_alike(noise):
    for body in (noise, b"FXS1" + noise, Exchange(Query(0), bytes(32), PUBLIC, TOKEN, 1).body[: len(noise)]):
        with pytest.raises(CallerError) as caught:
            open_request(body, KEY.unseal)
        assert (caught.value.code, caught.value.message) == ("sealed_refused", REFUSED)


# ---- answers ---------------------------------------------------------------------------------------


def both_ends(size: int = SMALL) -> tuple[FrameSealer, FrameOpener]:
    given = (b"s" * 32, b"h" * 32, b"n" * 32, size)
    return FrameSealer(*given), FrameOpener(*given)


def frames_of(data: bytes, size: int = SMALL) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def answer() -> list[bytes]:
    sealer, _ = both_ends()
    frames = []
    for word in ("one", "two", "three"):
        sealer.add(encode(Delta(0, word, 1)))
        frames.append(sealer.frame())
    sealer.add(encode(END))
    return [*frames, *frames_of(sealer.end())]


@given(
    words=st.lists(st.text(max_size=700), max_size=8),
    size=st.sampled_from([SMALL, LARGE]),
    piece=st.integers(1, 5000),
)
def test_an_answer_comes_out_as_it_went_in_however_it_is_cut(words, size, piece):
    sealer, opener = both_ends(size)
    wire = b""
    for word in words:
        sealer.add(encode(Delta(0, word, 1)))
        wire += sealer.frame()
    sealer.add(encode(END))
    wire += sealer.end()
    messages = [m for start in range(0, len(wire), piece) for m in opener.feed(wire[start : start + piece])]
    opener.end()
    assert messages == [*(Delta(0, word, 1) for word in words), END]
    assert len(wire) % size == 0


def test_frames_have_one_size_whatever_they_hold():
    sealer, _ = both_ends()
    empty = sealer.frame()
    sealer.add(encode(Delta(0, "x" * 5000, 1)))
    assert {len(empty), len(sealer.frame()), len(sealer.frame())} == {SMALL}


@given(st.integers(0, 100_000))
def test_the_end_takes_a_power_of_two(waiting):
    sealer, _ = both_ends()
    sealer.add(bytes(waiting))
    size = len(sealer.end())
    assert size >= LAST_SIZE
    assert size.bit_count() == 1


def test_what_was_asked_decides_the_size_of_frames():
    assert frame_size(question()) == SMALL
    assert {frame_size(asked) for asked in (question(logprobs=1), question(echo=True), Query(0))} == {LARGE}


def read(reader: FrameOpener | Exchange, pieces: list[bytes]) -> None:
    for piece in pieces:
        reader.feed(piece)
    reader.end()


CHANGES = {
    "cut off": lambda frames: frames[:-1],
    "cut off at once": lambda _: [],
    "cut inside a frame": lambda frames: [*frames[:-1], frames[-1][:-1]],
    "reordered": lambda frames: [frames[1], frames[0], *frames[2:]],
    "one twice": lambda frames: [frames[0], *frames],
    "one left out": lambda frames: frames[1:],
    "one changed": lambda frames: [frames[0][:-1] + bytes([frames[0][-1] ^ 1]), *frames[1:]],
    "ended early": lambda frames: [b"\1" + frames[0][1:]],
    "the end made a middle": lambda frames: [*frames[:-1], b"\0" + frames[-1][1:]],
    "gone on with": lambda frames: [*frames, frames[0]],
    "a mark of no meaning": lambda frames: [b"\2" + frames[0][1:], *frames[1:]],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_frames_that_were_tampered_with_are_noticed(change):
    _, opener = both_ends()
    with pytest.raises(PeerError) as caught:
        read(opener, change(answer()))
    assert caught.value.code in {"answer_cut_off", "answer_forged"}


def test_the_answer_to_another_request_is_noticed():
    right, wrong = (b"s" * 32, b"h" * 32, b"n" * 32), b"x" * 32
    for secret, body_hash, nonce in ((wrong, *right[1:]), (right[0], wrong, right[2]), (*right[:2], wrong)):
        with pytest.raises(PeerError, match="changed on its way"):
            FrameOpener(secret, body_hash, nonce, SMALL).feed(answer()[0])


def test_equal_contents_make_different_frames():
    sealer, _ = both_ends()
    assert len({sealer.frame() for _ in range(300)}) == 300


@settings(max_examples=200)
@given(st.binary(max_size=4 * SMALL))
def test_whatever_comes_instead_of_an_answer_is_a_peer_error(noise):
    exchange = Exchange(question(), secrets.token_bytes(32), PUBLIC, TOKEN, 1)
    with pytest.raises(PeerError):
        read(exchange, [noise])
