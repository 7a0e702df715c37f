"""Weights come in while a graph computes: in its order, again after a recall, or it ends without them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from inside_world import InsideWorld, Unanswered
from played_application import CHUNK, KV, SCRATCH, WEIGHTS, answer_to

from flexserve.protocol.trusted_app import Kind
from flexserve.tee_client.files import ImageFile
from flexserve.tee_client.messages import Ask
from flexserve.tee_client.ordered_chunks import OrderedChunks
from flexserve.testing.trustzone import eventually

MakeWorld = Callable[..., InsideWorld]
SAID = answer_to("again>")


@pytest.fixture
def emptied(make_world: MakeWorld) -> InsideWorld:
    """A world whose model has an image, and nothing in memory."""
    world = make_world()
    world.say("hello>")
    world.recall(None)
    world.played.asked.clear()
    return world


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The chunks that were read of images, in that order."""
    found, plain = list[int](), ImageFile.chunk

    def watched(file: ImageFile, number: int) -> bytes:
        found.append(number)
        return plain(file, number)

    monkeypatch.setattr(ImageFile, "chunk", watched)
    return found


def test_a_graph_begins_before_its_weights_are_there(
    emptied: InsideWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    computes, plain = threading.Event(), ImageFile.chunk
    emptied.played.between_slices = computes.set

    def late(file: ImageFile, number: int) -> bytes:
        assert computes.wait(20)
        return plain(file, number)

    monkeypatch.setattr(ImageFile, "chunk", late)
    assert emptied.say("again>") == SAID
    assert emptied.played.asked.count(Ask.LOAD) >= WEIGHTS


def test_chunks_come_in_the_order_in_which_graphs_read_them(emptied: InsideWorld, read: list[int]) -> None:
    emptied.played.order = [3, 1]
    emptied.say("again>")
    emptied.recall(None)
    read.clear()
    assert emptied.say("again>") == SAID
    assert sorted(read[:2]) == [1, 3]
    assert sorted(read) == list(range(WEIGHTS))


def test_what_graphs_read_last_goes_first(emptied: InsideWorld) -> None:
    emptied.played.order = [3, 1]
    emptied.say("again>")
    assert emptied.app.evict("a", Kind.WEIGHTS, 2 * CHUNK, keep=False) == 2 * CHUNK
    [model] = emptied.played.models.values()
    assert model.ready == [False, True, False, True]
    assert emptied.app.chunks("a") == [(0, 1), (2, 1), (0, 1), (2, 1)]
    assert emptied.app.evict("a", Kind.WEIGHTS, 1, keep=False) == CHUNK
    assert model.ready == [False, False, False, True]


def test_a_chunk_that_comes_after_its_place_was_given_up_goes_and_comes_again_in_its_turn(
    emptied: InsideWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_chunk, plain_claim, claimed = ImageFile.chunk, OrderedChunks.claim, list[int]()
    [model] = emptied.played.models.values()
    given_up = threading.Event()

    def evicting(file: ImageFile, number: int) -> bytes:
        """While chunk 2 is read, the others are there; then it and those beside it are given up."""
        if number == 2 and not given_up.is_set():
            assert eventually(lambda: model.ready == [True, True, False, True])
            until = time.monotonic() + 20
            went = emptied.app.evict("a", Kind.WEIGHTS, 2 * CHUNK, keep=False, until=until)
            assert went == 2 * CHUNK
            given_up.set()
        return plain_chunk(file, number)

    def claiming(chunks: OrderedChunks, count: int | None = None) -> int | None:
        chunk = plain_claim(chunks, count)
        if chunk is not None:
            claimed.append(chunk)  # under the lock: threads may read them in another order
        return chunk

    monkeypatch.setattr(ImageFile, "chunk", evicting)
    monkeypatch.setattr(OrderedChunks, "claim", claiming)
    emptied.warm()
    assert claimed == [0, 1, 2, 3, 1, 2, 3]
    assert model.ready == [True] * WEIGHTS
    assert emptied.played.held == emptied.played.granted


@pytest.mark.parametrize("order", [[WEIGHTS], [1 << 31, 0]])
def test_an_order_of_chunks_that_are_none_ends_a_request(emptied: InsideWorld, order: list[int]) -> None:
    emptied.played.order = order
    with pytest.raises(Unanswered, match="chunks that are none"):
        emptied.say("again>")


def test_what_is_recalled_in_mid_graph_comes_again_and_the_answer_is_the_same(emptied: InsideWorld) -> None:
    went = list[int]()

    def evict() -> None:
        size, until = WEIGHTS * CHUNK, time.monotonic() + 20
        went.append(emptied.app.evict("a", Kind.WEIGHTS, size, keep=False, until=until))

    def recall() -> None:
        emptied.played.between_slices = lambda: None
        thread = threading.Thread(target=evict)
        thread.start()
        while thread.is_alive():
            emptied.played.answer_waiting()

    emptied.warm()
    emptied.played.asked.clear()
    emptied.played.between_slices = recall
    assert emptied.say("again>") == SAID
    assert went == [WEIGHTS * CHUNK]
    assert emptied.played.asked.count(Ask.LOAD) >= WEIGHTS


def test_a_graph_whose_memory_is_refused_ends_and_the_next_request_is_answered(
    emptied: InsideWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flexserve.tee_client.steps._PATIENCE", 0.3)
    memory = emptied.played.memory
    emptied.played.memory = KV + SCRATCH + WEIGHTS - 1 + emptied.played.heap
    with pytest.raises(Unanswered):
        emptied.say("again>")
    assert Ask.LEAVE in emptied.played.asked
    emptied.played.memory = memory
    assert emptied.say("again>") == SAID


def test_a_damaged_chunk_ends_a_graph_that_waits_for_it(emptied: InsideWorld) -> None:
    emptied.played.damaged = True
    with pytest.raises(Unanswered):
        emptied.say("again>")
    emptied.played.damaged = False
    assert emptied.say("again>") == SAID


def test_an_answer_says_how_long_it_stood_waiting(emptied: InsideWorld) -> None:
    emptied.played.waited = 250_000
    timings = emptied.ask(emptied.generation("again>")).timings
    assert timings.restore >= 250
    assert timings.restored_bytes == WEIGHTS * CHUNK


def test_a_request_that_is_cancelled_waits_for_no_weights(
    emptied: InsideWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, plain = emptied.played.asked, ImageFile.chunk

    def late(file: ImageFile, number: int) -> bytes:
        deadline = time.monotonic() + 20
        while Ask.LEAVE not in asked:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return plain(file, number)

    monkeypatch.setattr(ImageFile, "chunk", late)
    request = emptied.generation("again>")
    emptied.submit(request)
    while Ask.STEP not in asked:
        time.sleep(0.01)
    emptied.scheduler.cancel(request.request)
    with pytest.raises(Unanswered) as ended:
        emptied.ended()
    assert ended.value.code == "cancelled"
    assert emptied.say("again>") == SAID
