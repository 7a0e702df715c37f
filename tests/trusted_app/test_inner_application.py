"""The trusted application of S-EL0: what it computes, what it holds, and what it refuses."""

from __future__ import annotations

import random
import subprocess

import pytest
from inner_application import (
    MODEL,
    MOST_PAYLOAD,
    Ask,
    Finish,
    Gone,
    Kind,
    Opened,
    Start,
    Status,
    grant_plenty,
    packed,
    unpacked,
)

from flexserve.emulator.trusted_app import Programs

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
    start: Start, image: list[bytes], emulator: str, programs: Programs, threads: int
) -> None:
    app = start(threads=threads)
    grant_plenty(app)
    model = Opened(app, MODEL)
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


def test_weights_that_went_in_the_middle_of_an_answer_come_back(loaded: Opened, image: list[bytes]) -> None:
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


def test_a_step_says_how_much_memory_it_lacks(start: Start, image: list[bytes]) -> None:
    app = start()
    app.do(Ask.GRANT, 0, len(image))
    model = Opened(app, MODEL)
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
        (Ask.OPEN, (0, 1 << 20, 1024, 1), b"x"),  # there is a model of this number
        (Ask.OPEN, (1, 0, 1024, 1), b"x"),  # a file shorter than its first part
        (Ask.OPEN, (1, 1 << 20, 0, 1), b"x"),
        (Ask.OPEN, (1, 1 << 20, 1024, 1000), b"x"),
        (Ask.CLOSE, (7,), b""),
        (Ask.WEIGHT, (0, 10_000), b""),
        (Ask.WRITE, (0, 0, 1 << 63), b"x"),
        (Ask.READ, (0, 0), b""),  # not in memory
        (Ask.LOAD, (0, 10_000), b""),
        (Ask.LOAD, (0, 0), b"short"),
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
    opened: Opened, kind: int, arguments: tuple[int, ...], payload: bytes
) -> None:
    app = opened.app
    before = (app.do(Ask.POOL), opened.do(Ask.RESIDENT))
    assert app.ask(kind, *arguments, payload=payload).status is Status.BAD
    assert (app.do(Ask.POOL), opened.do(Ask.RESIDENT)) == before


def test_a_sequence_is_named_once_in_a_step(loaded: Opened) -> None:
    loaded.begin(loaded.tokenise(QUESTION))
    assert loaded.app.ask(Ask.STEP, loaded.number, 512, payload=packed([0, 0])).status is Status.BAD


def test_what_is_no_model_is_not_opened(start: Start) -> None:
    app = start()
    noise = random.Random(1).randbytes(5000)
    for metadata in (noise, b"GGUF" + noise, MODEL.read_bytes()[:4000]):
        assert app.ask(Ask.OPEN, 0, 1 << 20, 1024, 1, payload=metadata).status is Status.UNSUPPORTED
    assert app.do(Ask.POOL).values[0] == 0


def test_a_message_longer_than_any_ends_it(start: Start) -> None:
    app = start()
    with pytest.raises(Gone):
        app.ask(Ask.TOKENISE, 0, payload=bytes(MOST_PAYLOAD + 1))


# ---- the file ------------------------------------------------------------------------------------


def test_the_file_is_static_and_names_no_place_of_its_making(programs: Programs) -> None:
    content = programs.application.read_bytes()
    assert b"/ld-linux" not in content
    for place in (programs.application.parent, MODEL.parents[2]):
        assert str(place).encode() not in content
