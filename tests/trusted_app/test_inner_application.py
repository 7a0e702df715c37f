"""The trusted application of S-EL0: what it computes, and what it holds."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable

import pytest
from inner_application import QUESTION, Application, Start, plain, provide
from inner_models import Opened, no_tokens

from flexserve.emulator.trusted_app import Programs
from flexserve.harness.inner import Image, SealedFile
from flexserve.protocol.sampling import Sampling
from flexserve.protocol.trusted_app import Kind
from flexserve.tee_client.messages import Ask, Finish, Reply, Status, packed, unpacked
from flexserve.tee_client.sampling import settings

OTHER = "<|im_start|>user\nWhat is a granule?<|im_end|>\n<|im_start|>assistant\n"


# ---- what it computes ----------------------------------------------------------------------------


# On a machine that does much else, two threads wait for each other for most of the time.
@pytest.mark.parametrize(("threads", "most"), [(1, 100), (2, 3)])
def test_says_the_tokens_that_llama_cpp_says(
    start: Start, sealed: SealedFile, image: Image, emulator: str, programs: Programs, threads: int, most: int
) -> None:
    app = start(threads=threads)
    provide(app)
    model = Opened(app, sealed)
    model.load(image)
    said = model.answer(model.tokenise(QUESTION), most=most)
    assert said == plain(emulator, programs, QUESTION, threads, most)


def test_answers_the_question_of_the_demo(loaded: Opened) -> None:
    answer = loaded.detokenise(loaded.answer(loaded.tokenise(QUESTION)))
    assert answer.startswith("Flex-Mem is recallable secure memory.")


def test_two_conversations_in_one_graph_say_what_each_says_alone(loaded: Opened) -> None:
    prompts = [loaded.tokenise(text) for text in (QUESTION, OTHER)]
    alone = [loaded.answer(prompt, most=6) for prompt in prompts]
    for sequence, prompt in enumerate(prompts):
        loaded.begin(prompt, sequence=sequence, most=6)
    running = [0, 1]
    while running:
        running = [each.sequence for each in loaded.step(*running) if each.finished is Finish.NO]
    assert [unpacked(loaded.do(Ask.SAID, sequence).payload) for sequence in (0, 1)] == alone


def test_a_prompt_that_is_taken_in_by_parts_has_the_same_answer(loaded: Opened) -> None:
    prompt = loaded.tokenise(QUESTION)
    at_once = loaded.answer(prompt, most=8)
    loaded.begin(prompt, most=8, sequence=1)
    [first] = loaded.step(1, limit=5)
    assert (first.pending, first.said) == (len(prompt) - 5, 0)
    while loaded.step(1, limit=5)[0].finished is Finish.NO:
        pass
    assert unpacked(loaded.do(Ask.SAID, 1).payload) == at_once


def test_a_seed_repeats_what_was_drawn(loaded: Opened) -> None:
    def drawn(seed: int) -> list[int]:
        sampling = settings(Sampling(temperature=3.0, samplers=["temperature"], seed=seed), no_tokens)
        return loaded.answer(loaded.tokenise(QUESTION), most=12, sampling=sampling)

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
    whole = loaded.answer(prompt, most=8)
    loaded.begin(prompt, most=8)
    for number in range(3):
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
    prompt = loaded.tokenise(QUESTION * 4)
    undisturbed = loaded.answer(prompt, most=2)
    loaded.begin(prompt, sequence=1, most=2)
    app = loaded.app
    step = app.send(Ask.STEP, 0, 512, payload=packed([1]))
    evict = app.send(Ask.EVICT, 0, Kind.WEIGHTS, 0, loaded.chunks)
    other = app.send(Ask.TOKENISE, 0, payload=b"now?")
    answers = [app.receive() for _ in range(3)]
    assert [tag for tag, _ in answers] == [evict, other, step]
    assert [reply.status for _, reply in answers] == [Status.DONE, Status.BUSY, Status.MISSING]
    assert answers[0][1].values[0] == loaded.chunks
    loaded.load(image)
    while loaded.step(1)[0].finished is Finish.NO:
        pass
    assert unpacked(loaded.do(Ask.SAID, 1).payload) == undisturbed


def test_what_goes_is_unused_and_can_be_given_back(loaded: Opened) -> None:
    app = loaded.app
    loaded.answer(loaded.tokenise(QUESTION), most=3)
    went = sum(loaded.do(Ask.EVICT, kind, 0, loaded.chunks).values[0] for kind in Kind)
    assert went == loaded.chunks + loaded.kv_chunks + loaded.scratch_chunks
    loaded.do(Ask.CLOSE)
    unused = app.do(Ask.POOL).values[0]
    assert app.do(Ask.GIVE_BACK, 1).values[0] == 1
    assert app.do(Ask.GIVE_BACK, 1 << 40).values[0] == unused - 1
    assert app.do(Ask.POOL).values[0] == 0


def test_a_step_says_how_much_memory_it_lacks(start: Start, sealed: SealedFile, image: Image) -> None:
    app = start()
    provide(app, chunks=len(image.chunks))
    model = Opened(app, sealed)
    model.load(image)
    model.begin(model.tokenise(QUESTION), most=4)
    lacks = 0
    while (reply := app.ask(Ask.STEP, model.number, 512, payload=packed([0]))).status is Status.REFUSED:
        assert reply.values[0] > 0
        lacks += reply.values[0]
        assert app.do(Ask.POOL).values[0] == 0
        app.do(Ask.GRANT, reply.values[0])
    assert reply.status is Status.DONE
    assert lacks >= model.kv_chunks + model.scratch_chunks


def test_a_conversation_goes_on_where_it_was(loaded: Opened) -> None:
    prompt = loaded.tokenise(QUESTION)
    said = loaded.answer(prompt, most=4)
    assert loaded.begin([*prompt, *said, 5, 6, 7]) == 4  # the last token that was said has no KV
    loaded.do(Ask.END, 0)
    assert loaded.begin([*prompt[:5], 1, 2]) == 2
    loaded.do(Ask.END, 0)


@pytest.fixture
def answered(loaded: Opened) -> list[int]:
    """A long prompt and the beginning of its answer: the first sequence has KV of all but the last token."""
    prompt = loaded.tokenise(QUESTION * 2)
    return [*prompt, *loaded.answer(prompt, most=8)]


def test_sealed_kv_is_taken_in_by_another_process(
    loaded: Opened, answered: list[int], start: Start, sealed: SealedFile, image: Image
) -> None:
    kv = loaded.keep(0)
    assert len(kv.parts) > 1
    undisturbed = loaded.answer(answered, most=4)
    app = start()
    provide(app)
    other = Opened(app, sealed, sequences=2)
    other.load(image)
    assert other.resume(1, kv) is Status.DONE
    assert other.begin(answered, sequence=1, most=4) == 1
    while other.step(1)[0].finished is Finish.NO:
        pass
    assert unpacked(other.do(Ask.SAID, 1).payload) == undisturbed


@pytest.mark.usefixtures("answered")
def test_damaged_kv_leaves_a_sequence_as_it_was(loaded: Opened) -> None:
    kv = loaded.keep(0)
    for parts in ([*kv.parts[:-1], kv.parts[-1][:-1] + b"?"], [kv.parts[1], kv.parts[0], *kv.parts[2:]]):
        assert loaded.resume(0, dataclasses.replace(kv, parts=parts)) is not Status.DONE
    assert loaded.resume(1, dataclasses.replace(kv, salt=bytes(32))) is Status.DAMAGED
    assert loaded.keep(0).size == kv.size
    assert loaded.app.ask(Ask.KEEP, 0, 1).status is Status.BAD  # it has nothing


def test_kv_of_another_owner_is_not_continued(loaded: Opened) -> None:
    prompt = loaded.tokenise(QUESTION)
    loaded.begin(prompt, owner=b"first owner.....")
    loaded.step(0)
    loaded.do(Ask.END, 0)
    assert loaded.begin(prompt, owner=b"second owner....") == len(prompt)
    loaded.step(0)
    loaded.do(Ask.END, 0)
    assert loaded.begin(prompt, owner=b"second owner....") == 1
    loaded.do(Ask.END, 0)


def test_sealed_kv_is_taken_in_for_its_owner_only(loaded: Opened) -> None:
    prompt, owner = loaded.tokenise(QUESTION), b"first owner....."
    loaded.begin(prompt, owner=owner)
    loaded.step(0)
    loaded.do(Ask.END, 0)
    kv = loaded.keep(0)
    assert loaded.resume(1, kv, owner=b"second owner....") is Status.DAMAGED
    assert loaded.resume(1, kv, owner=owner) is Status.DONE
    assert loaded.begin(prompt, sequence=1, owner=b"second owner....") == len(prompt)
    loaded.do(Ask.END, 1)


def test_several_answers_to_a_prompt_share_its_kv(loaded: Opened) -> None:
    prompt = loaded.tokenise(QUESTION)
    first = loaded.answer(prompt, most=6)
    assert loaded.resume(1, loaded.keep(0)) is Status.DONE
    assert loaded.begin(prompt, sequence=1, most=6) == 1
    assert loaded.rest(1).tokens == first


def test_evicted_kv_is_computed_anew(loaded: Opened) -> None:
    prompt = loaded.tokenise(QUESTION)
    before = loaded.answer(prompt, most=6)
    assert loaded.do(Ask.EVICT, Kind.KV).values[0] == loaded.kv_chunks
    assert loaded.begin(prompt) == len(prompt)
    loaded.do(Ask.END, 0)
    assert loaded.answer(prompt, most=6) == before


def test_kv_in_use_stays(loaded: Opened) -> None:
    loaded.begin(loaded.tokenise(QUESTION))
    loaded.step(0)
    assert loaded.app.ask(Ask.EVICT, loaded.number, Kind.KV).status is Status.BAD


# ---- weights that come while it computes ----------------------------------------------------------


def begun(loaded: Opened) -> list[int]:
    """Begin an answer whose weights are not there; return what it is."""
    prompt = loaded.tokenise(QUESTION)
    whole = loaded.answer(prompt, most=4)
    loaded.do(Ask.EVICT, Kind.KV)
    loaded.do(Ask.EVICT, Kind.WEIGHTS, 0, loaded.chunks)
    loaded.begin(prompt, most=4)
    return whole


def waiting_step(loaded: Opened) -> int:
    """Ask for a step that waits for weights; return its tag."""
    return loaded.app.send(Ask.STEP, loaded.number, 512, 1, payload=packed([0]))


def sent(loaded: Opened, image: Image, chunks: Iterable[int]) -> list[int]:
    """Send chunks; return the tags."""
    return [loaded.app.send(Ask.LOAD, loaded.number, each, payload=image.chunks[each]) for each in chunks]


def received(app: Application, count: int) -> dict[int, Reply]:
    """Return so many answers by their tags, in the order in which they came."""
    return dict(app.receive() for _ in range(count))


def test_a_graph_begins_without_weights_and_waits_for_each(loaded: Opened, image: Image) -> None:
    whole, last = begun(loaded), loaded.chunks - 1
    step = waiting_step(loaded)
    early = received(loaded.app, len(sent(loaded, image, range(last))))
    assert {reply.status for reply in early.values()} == {Status.DONE}
    assert step not in early
    assert loaded.app.do(Ask.POOL).values[0] > 0  # it answers meanwhile
    sent(loaded, image, [last])
    late = received(loaded.app, 2)
    assert list(late)[-1] == step
    assert late[step].values[0] > 0  # microseconds that it waited
    while loaded.step(0)[0].finished is Finish.NO:
        pass
    assert unpacked(loaded.do(Ask.SAID, 0).payload) == whole


def test_a_step_whose_weights_do_not_come_ends_and_can_be_repeated(loaded: Opened, image: Image) -> None:
    whole, app = begun(loaded), loaded.app
    assert app.do(Ask.LEAVE).values[0] == 0  # there is none yet: what is said too early counts for none
    step = waiting_step(loaded)
    received(app, len(sent(loaded, image, range(loaded.chunks - 1))))
    leave = app.send(Ask.LEAVE)
    ended = received(app, 2)
    assert ended[leave].values[0] == 1
    assert (ended[step].status, ended[step].values[0]) == (Status.MISSING, 1)
    waiting_step(loaded)
    sent(loaded, image, [loaded.chunks - 1])
    assert {reply.status for reply in received(app, 2).values()} == {Status.DONE}
    while loaded.step(0)[0].finished is Finish.NO:
        pass
    assert unpacked(loaded.do(Ask.SAID, 0).payload) == whole


def test_what_goes_while_a_graph_runs_comes_again_and_what_is_damaged_is_waited_for(
    loaded: Opened, image: Image
) -> None:
    whole, app, last = begun(loaded), loaded.app, loaded.chunks - 1
    waiting_step(loaded)
    received(app, len(sent(loaded, image, range(last))))
    evict = app.send(Ask.EVICT, 0, Kind.WEIGHTS, 0, last)
    damaged = app.send(Ask.LOAD, 0, last, payload=bytes(16) + image.chunks[last][16:])
    answers = received(app, 2)
    assert answers[evict].values[0] == last
    assert answers[damaged].status is Status.DAMAGED
    again = sent(loaded, image, range(loaded.chunks))
    assert {reply.status for reply in received(app, len(again) + 1).values()} == {Status.DONE}
    assert list(answers) == [evict, damaged]
    while loaded.step(0)[0].finished is Finish.NO:
        pass
    assert unpacked(loaded.do(Ask.SAID, 0).payload) == whole


def test_the_order_in_which_a_graph_reads_its_chunks_is_told_while_it_waits(
    loaded: Opened, image: Image
) -> None:
    assert unpacked(loaded.do(Ask.ORDER).payload) == []
    loaded.do(Ask.EVICT, Kind.WEIGHTS, 0, loaded.chunks)
    loaded.begin(loaded.tokenise(QUESTION), most=1)
    step = waiting_step(loaded)
    order = unpacked(loaded.app.do(Ask.ORDER, loaded.number).payload)
    assert sorted(order) == list(range(loaded.chunks))
    sent(loaded, image, order)
    assert received(loaded.app, loaded.chunks + 1)[step].status is Status.DONE


def test_a_vector_waits_for_weights_too(loaded: Opened, image: Image) -> None:
    text = loaded.tokenise(QUESTION)
    whole = loaded.embed(text)
    loaded.do(Ask.EVICT, Kind.WEIGHTS, 0, loaded.chunks)
    embed = loaded.app.send(Ask.EMBED, loaded.number, 0, 512, 1, payload=packed(text))
    sent(loaded, image, range(loaded.chunks))
    found = received(loaded.app, loaded.chunks + 1)[embed]
    assert struct.unpack(f"<{len(found.payload) // 4}f", found.payload) == tuple(whole)


def test_who_closes_a_model_waits_for_what_is_being_decrypted(loaded: Opened, image: Image) -> None:
    loaded.do(Ask.EVICT, Kind.WEIGHTS, 0, loaded.chunks)
    loads = sent(loaded, image, range(2))
    close = loaded.app.send(Ask.CLOSE, loaded.number)
    assert list(received(loaded.app, 3)) == [*loads, close]
    assert loaded.app.do(Ask.POOL).values[0] > 0
