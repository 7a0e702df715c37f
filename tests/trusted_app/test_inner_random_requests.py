"""The trusted application of S-EL0 against requests of all kinds: it answers each, and goes on."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from inner_application import QUESTION, Application, checked, provide
from inner_models import Opened, no_tokens

from flexserve.emulator.trusted_app import Programs
from flexserve.harness.inner import Image, SealedFile
from flexserve.protocol.sampling import Sampling
from flexserve.tee_client.messages import Ask, Reply, Status, packed
from flexserve.tee_client.sampling import settings as sampling_settings

# What is about the machine's memory stays as the test has it, and the model stays open.
ASKED = [kind for kind in Ask if kind not in (Ask.GRANT, Ask.GIVE_BACK, Ask.HEAP, Ask.CLOSE, Ask.EVICT)]
NUMBERS = st.one_of(
    st.integers(0, 3), st.sampled_from([16, 512, 1 << 20, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
)
TOKENS = st.lists(st.integers(0, 320) | st.integers(0, (1 << 32) - 1), max_size=12)
PAYLOADS = st.one_of(
    st.binary(max_size=200),
    TOKENS.map(lambda tokens: struct.pack(f"<{len(tokens)}I", *tokens)),
    st.lists(st.integers(0, 300), min_size=1, max_size=12).map(lambda it: struct.pack(f"<{len(it)}I", *it)),
    st.sampled_from([bytes(16), bytes(32), bytes(40), bytes(120)]),
)
REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(ASKED) | st.integers(0, 70),
        st.sampled_from([0, 0, 0, 0, 1, 1 << 40]),  # the model
        st.lists(NUMBERS, max_size=4),
        PAYLOADS,
    ),
    min_size=1,
    max_size=15,
)

CONTEXT = 40  # tokens: it is full soon
SEQUENCE = st.integers(0, 1)
TOLD = sampling_settings(Sampling(temperature=0, echo=True, logprobs=3, ignore_eos=True), no_tokens)
AFTER = sampling_settings(Sampling(echo=True, logprobs=20, after_samplers=True, top_k=5, seed=1), no_tokens)
OF_GENERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just(Ask.BEGIN),
            st.tuples(SEQUENCE, st.integers(1, 60)),
            st.integers(1, CONTEXT - 1).map(lambda count: packed(range(3, 3 + count))),
        ),
        st.tuples(st.just(Ask.SAMPLING), st.tuples(SEQUENCE), st.sampled_from([TOLD, AFTER])),
        st.tuples(
            st.just(Ask.STEP),
            st.tuples(st.sampled_from([1, 7, 512])),
            st.sampled_from([packed(each) for each in ([0], [1], [0, 1], [1, 0])]),
        ),
        st.tuples(
            st.just(Ask.SHIFT), st.tuples(SEQUENCE, st.integers(0, 41), st.integers(0, 41)), st.just(b"")
        ),
        st.tuples(
            st.sampled_from([Ask.SAID, Ask.SAID, Ask.END, Ask.KEEP]), st.tuples(SEQUENCE), st.just(b"")
        ),
    ),
    min_size=5,
    max_size=60,
)


@pytest.fixture(scope="module")
def beset(emulator: str, programs: Programs, sealed: SealedFile, image: Image) -> Iterator[Opened]:
    """The demo's model with its weights, for tests that leave anything behind."""
    app = Application(checked(emulator, programs))
    provide(app)
    model = Opened(app, sealed, sequences=2, context=CONTEXT)
    model.load(image)
    yield model
    app.end()


@settings(max_examples=120, deadline=None)
@given(requests=REQUESTS)
@example(requests=[(Ask.WRITE, 0, [0], b"")])
def test_it_answers_whatever_is_asked(
    beset: Opened, requests: list[tuple[int, int, list[int], bytes]]
) -> None:
    for kind, model, arguments, payload in requests:
        if kind in ASKED or kind not in list(Ask):
            assert isinstance(beset.app.ask(kind, model, *arguments, payload=payload), Reply)
    for sequence in range(2):
        beset.do(Ask.END, sequence)


@settings(max_examples=60, deadline=None)
@given(requests=OF_GENERATIONS)
def test_generations_are_begun_told_shifted_and_ended_in_any_order(
    beset: Opened, requests: list[tuple[Ask, tuple[int, ...], bytes]]
) -> None:
    for kind, arguments, payload in requests:
        reply = beset.app.ask(kind, 0, *arguments, payload=payload)
        assert reply.status in {Status.DONE, Status.BAD}
    for sequence in range(2):
        beset.do(Ask.END, sequence)


def test_afterwards_it_says_what_it_said_before(beset: Opened, loaded: Opened) -> None:
    prompt = loaded.tokenise(QUESTION)
    assert beset.answer(prompt, most=6) == loaded.answer(prompt, most=6)
