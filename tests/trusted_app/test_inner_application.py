"""The trusted application of S-EL0: what it computes, what it holds, and what it refuses."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from mmap import PAGESIZE
from pathlib import Path

import pytest
from inner_application import (
    MODEL,
    MOST_PAYLOAD,
    ROOT,
    Ask,
    Finish,
    Gone,
    Image,
    Kind,
    Opened,
    RingApplication,
    SealedFile,
    Start,
    Status,
    packed,
    provide,
    unpacked,
)

from flexserve.emulator.trusted_app import Programs
from flexserve.trusted.store.manifest import CHUNK

QUESTION = "<|im_start|>user\nWhat is Flex-Mem?<|im_end|>\n<|im_start|>assistant\n"
OTHER = "<|im_start|>user\nWhat is a granule?<|im_end|>\n<|im_start|>assistant\n"


def plain(emulator: str, programs: Programs, prompt: str, threads: int) -> list[int]:
    """Return the tokens that llama.cpp itself says."""
    command = (emulator, "-cpu", "cortex-a76", programs.plain, MODEL, str(threads), "100", prompt)
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    return [int(line) for line in done.stdout.split()]


# ---- what it computes ----------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_says_the_tokens_that_llama_cpp_says(
    start: Start, sealed: SealedFile, image: Image, emulator: str, programs: Programs, threads: int
) -> None:
    app = start(threads=threads)
    provide(app)
    model = Opened(app, sealed)
    model.load(image)
    assert model.answer(model.tokenise(QUESTION)) == plain(emulator, programs, QUESTION, threads)


def test_answers_the_question_of_the_demo(loaded: Opened) -> None:
    answer = loaded.detokenise(loaded.answer(loaded.tokenise(QUESTION)))
    assert answer.startswith("Flex-Mem is recallable secure memory.")


def test_two_conversations_in_one_graph_say_what_each_says_alone(loaded: Opened) -> None:
    prompts = [loaded.tokenise(text) for text in (QUESTION, OTHER)]
    alone = [loaded.answer(prompt) for prompt in prompts]
    for sequence, prompt in enumerate(prompts):
        loaded.begin(prompt, sequence=sequence)
    running = [0, 1]
    while running:
        running = [each.sequence for each in loaded.step(*running) if each.finished is Finish.NO]
    assert [unpacked(loaded.do(Ask.SAID, sequence).payload) for sequence in (0, 1)] == alone


def test_a_prompt_that_is_taken_in_by_parts_has_the_same_answer(loaded: Opened) -> None:
    prompt = loaded.tokenise(QUESTION)
    at_once = loaded.answer(prompt, most=8)
    loaded.begin(prompt, most=8)
    [first] = loaded.step(0, limit=5)
    assert (first.pending, first.said) == (len(prompt) - 5, 0)
    while loaded.step(0, limit=5)[0].finished is Finish.NO:
        pass
    assert unpacked(loaded.do(Ask.SAID, 0).payload) == at_once


def test_a_seed_repeats_what_was_drawn(loaded: Opened) -> None:
    def drawn(seed: int) -> list[int]:
        loaded.begin(loaded.tokenise(QUESTION), most=12, temperature=3.0, seed=seed)
        while loaded.step(0)[0].finished is Finish.NO:
            pass
        said = unpacked(loaded.do(Ask.SAID, 0).payload)
        loaded.do(Ask.END, 0)
        return said

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_an_answer_ends_at_its_limit(loaded: Opened) -> None:
    loaded.begin(loaded.tokenise(QUESTION), most=1)
    assert [each.finished for each in loaded.step(0)] == [Finish.LENGTH]


# ---- what it holds -------------------------------------------------------------------------------


def test_a_model_opens_without_memory(opened: Opened) -> None:
    assert opened.do(Ask.RESIDENT).values[:3] == (0, 0, 0)


def test_weights_that_went_in_the_middle_of_an_answer_come_back(loaded: Opened, image: Image) -> None:
    prompt = loaded.tokenise(QUESTION)
    whole = loaded.answer(prompt)
    loaded.begin(prompt)
    for number in range(5):
        assert loaded.do(Ask.EVICT, Kind.WEIGHTS, number % loaded.chunks, loaded.chunks).values[0] > 0
        refused = loaded.app.ask(Ask.STEP, loaded.number, 512, payload=packed([0]))
        assert refused.status is Status.MISSING
        assert refused.values[0] > 0
        loaded.load(image)
        loaded.step(0)
    while loaded.step(0)[0].finished is Finish.NO:
        pass
    assert unpacked(loaded.do(Ask.SAID, 0).payload) == whole


def test_weights_go_between_two_slices_of_a_graph(loaded: Opened, image: Image) -> None:
    prompt = loaded.tokenise(QUESTION * 20)
    undisturbed = loaded.answer(prompt, most=5)
    loaded.begin(prompt, most=5)
    app = loaded.app
    step = app.send(Ask.STEP, 0, 512, payload=packed([0]))
    evict = app.send(Ask.EVICT, 0, Kind.WEIGHTS, 0, loaded.chunks)
    other = app.send(Ask.TOKENISE, 0, payload=b"now?")
    answers = [app.receive() for _ in range(3)]
    assert [tag for tag, _ in answers] == [evict, other, step]
    assert [reply.status for _, reply in answers] == [Status.DONE, Status.BUSY, Status.MISSING]
    assert answers[0][1].values[0] == loaded.chunks
    loaded.load(image)
    while loaded.step(0)[0].finished is Finish.NO:
        pass
    assert unpacked(loaded.do(Ask.SAID, 0).payload) == undisturbed


def test_what_goes_is_unused_and_can_be_given_back(loaded: Opened) -> None:
    app = loaded.app
    loaded.answer(loaded.tokenise(QUESTION), most=3)
    went = sum(loaded.do(Ask.EVICT, kind, 0, loaded.chunks).values[0] for kind in Kind)
    assert went == loaded.chunks + loaded.kv + loaded.scratch
    loaded.do(Ask.CLOSE)
    unused = app.do(Ask.POOL).values[0]
    pages = {app.do(Ask.GIVE_BACK).values[0] for _ in range(unused)}
    assert len(pages) == unused
    assert app.ask(Ask.GIVE_BACK).status is Status.REFUSED


def test_a_step_says_how_much_memory_it_lacks(start: Start, sealed: SealedFile, image: Image) -> None:
    app = start()
    app.do(Ask.SECRET, payload=ROOT)
    app.do(Ask.GRANT, 0, len(image.chunks))
    model = Opened(app, sealed)
    model.load(image)
    model.begin(model.tokenise(QUESTION), most=4)
    lacks = 0
    while (reply := app.ask(Ask.STEP, model.number, 512, payload=packed([0]))).status is Status.REFUSED:
        assert reply.values[0] > 0
        lacks += reply.values[0]
        assert app.do(Ask.POOL).values[0] == 0
        app.do(Ask.GRANT, 1 << 20, reply.values[0])
    assert reply.status is Status.DONE
    assert lacks >= model.kv + model.scratch


def test_kv_in_use_stays(loaded: Opened) -> None:
    loaded.begin(loaded.tokenise(QUESTION))
    loaded.step(0)
    assert loaded.app.ask(Ask.EVICT, loaded.number, Kind.KV).status is Status.BAD


# ---- what it refuses -----------------------------------------------------------------------------


def test_nothing_is_done_before_the_first_word(start: Start) -> None:
    app = start(hello=False)
    assert app.ask(Ask.GRANT, 0, 1).status is Status.BAD
    assert app.ask(Ask.HELLO, 0).status is Status.BAD
    assert app.ask(Ask.HELLO, 1).status is Status.DONE
    assert app.ask(Ask.HELLO, 1).status is Status.BAD


@pytest.mark.parametrize(
    ("kind", "arguments", "payload"),
    [
        (0, (), b""),
        (99, (0,), b""),
        (Ask.GRANT, (0, 1 << 40), b""),
        (Ask.GRANT, (1 << 60, 1), b""),
        (Ask.SECRET, (), ROOT),  # it has one
        (Ask.OPEN, (0, 1 << 20, 1024, 1, 100), bytes(200)),  # there is a model of this number
        (Ask.OPEN, (1, 1 << 20, 0, 1, 100), bytes(200)),
        (Ask.OPEN, (1, 1 << 20, 1024, 1000, 100), bytes(200)),
        (Ask.OPEN, (1, 1 << 20, 1024, 1, 100), bytes(10)),
        (Ask.CLOSE, (7,), b""),
        (Ask.WRITE, (0, 5), b"x"),  # not the next one
        (Ask.WRITE, (0, 0), b"x"),
        (Ask.SEAL, (0, 0), b""),  # not in memory
        (Ask.SEAL, (0, 10_000), b""),
        (Ask.IMAGE, (0,), b"short"),
        (Ask.LOAD, (0, 0), b"there is no image"),
        (Ask.EVICT, (0, Kind.WEIGHTS, 2, 1), b""),
        (Ask.EVICT, (0, Kind.WEIGHTS, 0, 1 << 63), b""),
        (Ask.EVICT, (0, 77), b""),
        (Ask.DETOKENISE, (0,), b"odd"),
        (Ask.DETOKENISE, (0,), packed([1 << 31])),
        (Ask.BEGIN, (0, 0, 10), b""),
        (Ask.BEGIN, (0, 0, 0), packed([1])),
        (Ask.BEGIN, (0, 9, 10), packed([1])),
        (Ask.BEGIN, (0, 0, 10), packed([1 << 31])),
        (Ask.BEGIN, (0, 0, 10), packed([1] * 1024)),  # as long as the context
        (Ask.BEGIN, (0, 0, 10, 0x7FC00000), packed([1])),  # a temperature that is no number
        (Ask.STEP, (0, 512), packed([0])),  # nothing began
        (Ask.STEP, (0, 512), b""),
        (Ask.SAID, (0, 0), b""),
        (Ask.END, (0, 1 << 40), b""),
    ],
)
def test_a_request_that_is_none_changes_nothing(
    listening: Opened, kind: int, arguments: tuple[int, ...], payload: bytes
) -> None:
    app = listening.app
    before = (app.do(Ask.POOL), listening.do(Ask.RESIDENT))
    assert app.ask(kind, *arguments, payload=payload).status is Status.BAD
    assert (app.do(Ask.POOL), listening.do(Ask.RESIDENT)) == before


def test_a_sequence_is_named_once_in_a_step(loaded: Opened) -> None:
    loaded.begin(loaded.tokenise(QUESTION))
    assert loaded.app.ask(Ask.STEP, loaded.number, 512, payload=packed([0, 0])).status is Status.BAD


def test_what_this_device_did_not_seal_is_not_opened(start: Start, sealed: SealedFile) -> None:
    app = start()
    provide(app)
    manifest, opening = sealed.manifest, sealed.opening()
    sizes = (manifest.size, 1024, 1, manifest.metadata_bytes)
    for place in (0, 16, 50, len(opening) - 20, len(opening) - 1):
        damaged = bytearray(opening)
        damaged[place] ^= 1
        assert app.ask(Ask.OPEN, 0, *sizes, payload=bytes(damaged)).status is Status.DAMAGED
    for other in ((manifest.size + CHUNK, *sizes[1:]), (manifest.size - CHUNK, *sizes[1:])):
        assert app.ask(Ask.OPEN, 0, *other, payload=opening).status is Status.DAMAGED
    assert app.ask(Ask.OPEN, 0, *sizes, payload=opening).status is Status.DONE


def test_metadata_that_is_cut_off_is_no_model(start: Start, sealed: SealedFile) -> None:
    app = start()
    provide(app)
    for size in (1, 100, sealed.manifest.metadata_bytes - 40):
        sizes = (sealed.manifest.size, 1024, 1, size)
        assert app.ask(Ask.OPEN, 0, *sizes, payload=sealed.opening()).status is Status.UNSUPPORTED


def test_a_damaged_chunk_of_the_file_leaves_nothing(opened: Opened) -> None:
    first, second, *_ = opened.file.data
    damaged = bytearray(opened.file.chunk(first))
    damaged[-1] ^= 1
    assert opened.app.ask(Ask.WRITE, 0, first, payload=bytes(damaged)).status is Status.DAMAGED
    stranger = opened.file.chunk(second)  # it is genuine, and of another place
    assert opened.app.ask(Ask.WRITE, 0, first, payload=stranger).status is Status.DAMAGED
    opened.write_weights()  # it goes on where it was
    assert opened.detokenise(opened.answer(opened.tokenise(QUESTION))).startswith("Flex-Mem is")


def test_a_damaged_chunk_of_the_image_is_not_loaded(opened: Opened, image: Image) -> None:
    unused = opened.app.do(Ask.POOL)
    opened.do(Ask.IMAGE, payload=image.salt)
    for place in (0, 1 << 20, len(image.chunks[0]) - 1):
        damaged = bytearray(image.chunks[0])
        damaged[place] ^= 1
        assert opened.app.ask(Ask.LOAD, 0, 0, payload=bytes(damaged)).status is Status.DAMAGED
    assert (
        opened.app.ask(Ask.LOAD, 0, 0, payload=image.chunks[1]).status is Status.DAMAGED
    )  # of another place
    opened.do(Ask.IMAGE, payload=bytes(32))
    assert (
        opened.app.ask(Ask.LOAD, 0, 0, payload=image.chunks[0]).status is Status.DAMAGED
    )  # of another image
    assert opened.do(Ask.RESIDENT).values[Kind.WEIGHTS] == 0
    assert opened.app.do(Ask.POOL) == unused


def test_weights_that_are_not_whole_are_not_computed_with_nor_evicted(opened: Opened) -> None:
    first, *_ = opened.file.data
    opened.do(Ask.WRITE, first, payload=opened.file.chunk(first))
    opened.begin(opened.tokenise(QUESTION))
    assert opened.app.ask(Ask.STEP, 0, 512, payload=packed([0])).status is Status.MISSING
    assert opened.app.ask(Ask.EVICT, 0, Kind.WEIGHTS, 0, 1).status is Status.BAD
    assert opened.app.ask(Ask.SEAL, 0, 0).status is Status.BAD


def test_writing_waits_for_memory_and_goes_on(start: Start, sealed: SealedFile) -> None:
    app = start()
    app.do(Ask.SECRET, payload=ROOT)
    model = Opened(app, sealed)
    for number in sealed.data:
        while (reply := app.ask(Ask.WRITE, 0, number, payload=sealed.chunk(number))).status is Status.REFUSED:
            app.do(Ask.GRANT, 1 << 20, reply.values[0])
        assert reply.status is Status.DONE
    assert all(model.do(Ask.RESIDENT).payload)


def test_a_chunk_is_sealed_once(opened: Opened) -> None:
    opened.write_weights()
    sealed = opened.do(Ask.SEAL, 0)
    assert opened.app.ask(Ask.SEAL, 0, 0).status is Status.BAD
    assert MODEL.read_bytes()[-4096:] not in sealed.payload


def test_a_message_longer_than_any_ends_it(start: Start) -> None:
    app = start()
    with pytest.raises(Gone):
        app.ask(Ask.TOKENISE, 0, payload=bytes(MOST_PAYLOAD + 1))


# ---- the ring ------------------------------------------------------------------------------------


@pytest.fixture
def in_ring(emulator: str, programs: Programs, tmp_path: Path) -> Iterator[RingApplication]:
    """An application that is driven through a ring of twelve pages."""
    command = [emulator, "-cpu", "cortex-a76", programs.application]
    app = RingApplication(command, tmp_path / "ring", 12 * PAGESIZE)
    yield app
    app.end()


def test_through_a_ring_it_says_the_same(in_ring: RingApplication, sealed: SealedFile) -> None:
    provide(in_ring)
    model = Opened(in_ring, sealed)
    model.write_weights()  # chunks are many times larger than the ring
    assert model.detokenise(model.answer(model.tokenise(QUESTION))).startswith("Flex-Mem is recallable")


@pytest.mark.parametrize(
    ("number", "lie"),
    [(RingApplication.REQUESTS_WRITTEN, 1 << 20), (RingApplication.ANSWERS_READ, 1)],
)
def test_counts_that_cannot_be_end_it(in_ring: RingApplication, number: int, lie: int) -> None:
    in_ring.set_count(number, in_ring.count(number) + lie)
    with contextlib.suppress(Gone):
        in_ring.send(Ask.POOL)
    assert in_ring.process.wait(10) == 0


# ---- the file ------------------------------------------------------------------------------------


def test_the_file_is_static_and_names_no_place_of_its_making(programs: Programs) -> None:
    content = programs.application.read_bytes()
    assert b"/ld-linux" not in content
    for place in (programs.application.parent, MODEL.parents[2]):
        assert str(place).encode() not in content
