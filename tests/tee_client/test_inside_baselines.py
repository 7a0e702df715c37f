"""What FlexServe inside of the machine is measured against: the same answers, by other policies."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from inside_world import InsideWorld
from played_application import CHUNK, WEIGHTS, answer_to

from flexserve.bench.inside_baselines import BASELINES, ReadFirst, maker
from flexserve.tee_client.files import ImageFile
from flexserve.tee_client.messages import Ask

MakeWorld = Callable[..., InsideWorld]
ROOT = bytes(range(32))
SIZES = (5, 3, 4)  # bytes of an image's chunks
HEAD = 44 + 4 * len(SIZES)  # bytes before them


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(HEAD) + b"aaaaabbbcccc")
    return path


@pytest.fixture(params=[ReadFirst, ImageFile])
def reading(request: pytest.FixtureRequest, image: Path) -> Iterator[ImageFile]:
    file = request.param(os.open(image, os.O_RDONLY), b"salt", SIZES)
    yield file
    file.close()


@pytest.mark.parametrize("which", BASELINES)
def test_a_baseline_says_what_flexserve_says_request_after_request(which: str, make_world: MakeWorld) -> None:
    world = make_world(make_app=maker(which, lambda: ROOT))
    for prompt in ("hello>", "again>"):
        assert world.say(prompt) == answer_to(prompt)
        world.recall(None)
        assert world.app.memory()[0].weights == 0


def test_a_strawman_brings_nothing_in_ahead_of_need(make_world: MakeWorld) -> None:
    world = make_world(make_app=maker("strawman-opt", lambda: ROOT))
    world.say("hello>")
    world.recall(None)
    world.app.grant(WEIGHTS * CHUNK, 0)
    world.app.load("a", None)
    assert not world.app.loading
    assert world.app.memory()[0].weights == 0


def test_a_process_of_the_guest_is_told_the_secret_that_no_secure_os_has_for_it(
    make_world: MakeWorld,
) -> None:
    world = make_world(make_app=maker("nw-base", lambda: ROOT))
    assert world.played.asked[:2] == [Ask.HELLO, Ask.SECRET]
    assert world.played.secret == ROOT


def test_strawmen_are_told_no_secret(make_world: MakeWorld) -> None:
    def nobody() -> bytes:
        raise AssertionError("the key was read")

    for which in ("strawman", "strawman-opt"):
        make_world(make_app=maker(which, nobody)).say("hello>")


def test_an_image_reads_the_same_however_it_is_read_and_whatever_is_there_already(
    reading: ImageFile,
) -> None:
    chunks = {0: b"aaaaa", 1: b"bbb", 2: b"cccc"}
    for order in ((0, 1, 2), (1, 2), (2, 0, 1), (0, 2)):
        assert {number: reading.chunk(number) for number in order} == {each: chunks[each] for each in order}


def test_a_strawman_has_read_all_before_it_decrypts_anything(image: Path) -> None:
    file = ReadFirst(os.open(image, os.O_RDONLY), b"salt", SIZES)
    assert file.chunk(0) == b"aaaaa"
    os.truncate(image, 0)
    assert (file.chunk(1), file.chunk(2)) == (b"bbb", b"cccc")
    file.close()


def test_a_strawman_has_all_weights_before_it_computes(make_world: MakeWorld) -> None:
    world = make_world(make_app=maker("strawman", lambda: ROOT))
    world.say("hello>")
    world.recall(None)
    world.played.asked.clear()
    world.say("again>")
    asked = world.played.asked
    assert asked[: asked.index(Ask.STEP)].count(Ask.LOAD) == WEIGHTS


def test_strawman_opt_computes_before_all_weights_are_read(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(make_app=maker("strawman-opt", lambda: ROOT))
    world.say("hello>")
    world.recall(None)
    computes, plain = threading.Event(), ImageFile.chunk
    world.played.between_slices = computes.set

    def late(file: ImageFile, number: int) -> bytes:
        assert number != WEIGHTS - 1 or computes.wait(20)
        return plain(file, number)

    monkeypatch.setattr(ImageFile, "chunk", late)
    assert world.say("again>") == answer_to("again>")
