"""What FlexServe inside of the machine is measured against: the same answers, by other policies."""

from __future__ import annotations

import threading
from collections.abc import Callable
from unittest.mock import Mock

import pytest
from inside_world import InsideWorld
from played_application import CHUNK, KV, SCRATCH, WEIGHTS, answer_to
from played_disk import MemoryBlocks, PlayedDisk

from flexserve.bench.inside_baselines import BASELINES, Copied, ReadFirst, maker
from flexserve.platforms.trustzone.disk_image import SLOT, SLOT_PAGES, TAG, DiskImage, StoredObject
from flexserve.tee_client.messages import Ask

MakeBaseline = Callable[..., InsideWorld]
ROOT = bytes(range(32))
TAG_OF = b"t" * TAG


@pytest.fixture
def make_baseline(make_world: Callable[..., InsideWorld]) -> MakeBaseline:
    """What makes a world that a baseline drives, with a disk."""

    def make(which: str, root: Callable[[], bytes] = lambda: ROOT) -> InsideWorld:
        return make_world(make_app=maker(which, root), disk=PlayedDisk)

    return make


@pytest.mark.parametrize("which", BASELINES)
def test_a_baseline_says_what_flexserve_says_request_after_request(
    which: str, make_baseline: MakeBaseline
) -> None:
    world = make_baseline(which)
    for prompt in ("hello>", "again>"):
        assert world.say(prompt) == answer_to(prompt)
        world.recall(None)
        assert world.app.memory()[0].weights == 0


def test_a_strawman_brings_nothing_in_ahead_of_need(make_baseline: MakeBaseline) -> None:
    world = make_baseline("strawman-opt")
    world.say("hello>")
    world.recall(None)
    world.app.grant(WEIGHTS * CHUNK, 0)
    world.app.load("a", None)
    assert not world.app.loading
    assert world.app.memory()[0].weights == 0


def test_a_process_of_the_guest_is_told_the_secret_that_no_secure_os_has_for_it(
    make_baseline: MakeBaseline,
) -> None:
    world = make_baseline("nw-base")
    assert world.played.asked[:2] == [Ask.HELLO, Ask.SECRET]
    assert world.played.secret == ROOT


def test_strawmen_are_told_no_secret(make_baseline: MakeBaseline) -> None:
    def nobody() -> bytes:
        raise AssertionError("the key was read")

    for which in ("strawman", "strawman-opt"):
        make_baseline(which, nobody).say("hello>")


@pytest.fixture
def disk() -> DiskImage:
    return DiskImage.create(MemoryBlocks(8 * SLOT_PAGES), 8 * SLOT)


@pytest.fixture
def stored(disk: DiskImage) -> StoredObject:
    """An image of three chunks."""
    return disk.put("weights/a", b"salt", ((data, TAG_OF) for data in (b"aaaaa", b"bbb", b"cccc")))


@pytest.mark.parametrize("kind", [Copied, ReadFirst])
def test_an_image_reads_the_same_however_it_is_read_and_whatever_is_there_already(
    kind: type[Copied], disk: DiskImage, stored: StoredObject
) -> None:
    image = kind(Mock(), disk, stored)
    chunks = {0: b"aaaaa" + TAG_OF, 1: b"bbb" + TAG_OF, 2: b"cccc" + TAG_OF}
    for order in ((0, 1, 2), (1, 2), (2, 0, 1), (0, 2)):
        assert {number: image.chunk(number) for number in order} == {each: chunks[each] for each in order}


def test_a_strawman_has_read_all_before_it_decrypts_anything(disk: DiskImage, stored: StoredObject) -> None:
    image = ReadFirst(Mock(), disk, stored)
    assert image.chunk(0) == b"aaaaa" + TAG_OF
    disk.remove("weights/a")
    disk.put("weights/b", b"salt", ((b"x", TAG_OF) for _ in range(3)))
    assert (image.chunk(1), image.chunk(2)) == (b"bbb" + TAG_OF, b"cccc" + TAG_OF)


def test_baselines_have_memory_granted_before_their_weights_are_read(make_baseline: MakeBaseline) -> None:
    world = make_baseline("strawman")
    world.say("hello>")
    world.recall(None)
    granted, read = list[int](), world.disk.blocks.read

    def watched(page: int, pages: int) -> bytes:
        granted.append(world.played.granted)
        return bytes(read(page, pages))

    world.disk.blocks.read = watched
    world.say("again>")
    assert granted == [WEIGHTS + KV + SCRATCH] * WEIGHTS


def test_a_strawman_has_all_weights_before_it_computes(make_baseline: MakeBaseline) -> None:
    world = make_baseline("strawman")
    world.say("hello>")
    world.recall(None)
    world.played.asked.clear()
    world.say("again>")
    asked = world.played.asked
    assert asked[: asked.index(Ask.STEP)].count(Ask.LOAD) == WEIGHTS


def test_strawman_opt_computes_before_all_weights_are_read(
    make_baseline: MakeBaseline, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_baseline("strawman-opt")
    world.say("hello>")
    world.recall(None)
    computes, plain = threading.Event(), Copied.chunk
    world.played.between_slices = computes.set

    def late(image: Copied, number: int) -> bytes:
        assert number != WEIGHTS - 1 or computes.wait(20)
        return plain(image, number)

    monkeypatch.setattr(Copied, "chunk", late)
    assert world.say("again>") == answer_to("again>")
