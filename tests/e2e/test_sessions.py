"""Conversations: KV is used again, survives recalls and restarts, and is never anybody else's."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conversations import MODEL
from library import TOKENS_OF_TURN, Library

from flexserve.harness.worlds import DrivenWorld, Generated
from flexserve.protocol.prompts import ChatMessage, ChatPrompt, TextPrompt

pytestmark = pytest.mark.engine

NAME = "tiny"
QUESTIONS = (
    "What is Flex-Mem?",
    "What is a chunk?",
    "What does the Flex-Monitor do?",
    "What is TTFT?",
    "Who can read secure memory?",
)


class Conversation:
    """A chat with the tiny model."""

    def __init__(self, owner: str = "") -> None:
        self.owner = owner
        self.messages: list[ChatMessage] = []

    def ask(self, world: DrivenWorld, question: str) -> Generated:
        self.messages.append(ChatMessage("user", question))
        number = world.submit(
            NAME, ChatPrompt(list(self.messages)), TOKENS_OF_TURN, reuse=True, owner=self.owner
        )
        answer = world.result(number)
        self.messages.append(ChatMessage("assistant", answer.text))
        return answer

    def run(self, world: DrivenWorld, count: int) -> list[Generated]:
        return [self.ask(world, question) for question in QUESTIONS[:count]]


@pytest.fixture(scope="module")
def fresh(library: Library, tiny: str) -> list[str]:
    """What the model answers in a conversation whose every turn is computed whole."""
    assert tiny == NAME
    messages: list[ChatMessage] = []
    texts: list[str] = []
    with library.open() as world:
        for question in QUESTIONS:
            messages.append(ChatMessage("user", question))
            answer = world.result(world.submit(NAME, ChatPrompt(list(messages)), TOKENS_OF_TURN))
            assert answer.finished.usage.cached_tokens == 0
            messages.append(ChatMessage("assistant", answer.text))
            texts.append(answer.text)
    return texts


def sealed(library: Library) -> list[Path]:
    return sorted((library.root / "kv").glob("*.kv"))


def wait_for_sealing(world: DrivenWorld, count: int) -> None:
    deadline = time.monotonic() + 60
    while world.status().kv.sealed < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_next_turn_computes_only_its_own_tokens(library: Library, fresh: list[str]):
    with library.open() as world:
        answers = Conversation().run(world, 4)
    assert [answer.text for answer in answers] == fresh[:4]
    before = 0
    for answer in answers:
        usage = answer.finished.usage
        # All that the turn before had computed: its prompt, and all of its answer but the last token.
        assert usage.cached_tokens >= before - 2
        assert usage.cached_tokens < usage.prompt_tokens
        before = usage.prompt_tokens + usage.completion_tokens - 1
    assert before > 0


def test_a_conversation_is_found_again_after_a_recall_of_everything(library: Library, fresh: list[str]):
    with library.open() as world:
        conversation = Conversation("recalled")
        first = conversation.run(world, 3)
        wait_for_sealing(world, 1)
        world.recall(None)
        assert world.status().memory.secure == 0
        answer = conversation.ask(world, QUESTIONS[3])
        assert [a.text for a in [*first, answer]] == fresh[:4]
        assert answer.finished.usage.cached_tokens > first[-1].finished.usage.prompt_tokens
        assert world.status().kv.resumed == 1


def test_a_recall_seals_what_was_not_sealed_yet(library: Library, fresh: list[str]):
    with library.open() as world:
        conversation = Conversation("at once")
        first = conversation.run(world, 3)
        world.recall(None)  # before the engine had a quiet second
        answer = conversation.ask(world, QUESTIONS[3])
        assert answer.text == fresh[3]
        kv = world.status().kv
        assert kv.sealed + kv.dropped >= 1
        assert answer.finished.usage.cached_tokens > 0 or kv.dropped
        assert first


def test_a_conversation_survives_the_death_of_the_secure_world(library: Library, fresh: list[str]):
    conversation = Conversation("mortal")
    with library.open() as world:
        conversation.run(world, 3)
        wait_for_sealing(world, 1)
    with library.open() as world:  # the first was killed
        answer = conversation.ask(world, QUESTIONS[3])
        assert answer.text == fresh[3]
        assert answer.finished.usage.cached_tokens > 0


def test_one_owners_kv_is_of_no_use_to_another(library: Library, fresh: list[str]):
    with library.open() as world:
        Conversation("alice").run(world, 3)
        wait_for_sealing(world, 1)
        answers = Conversation("bob").run(world, 3)
        assert [answer.text for answer in answers] == fresh[:3]
        assert answers[0].finished.usage.cached_tokens == 0
        world.recall(None)
        assert Conversation("carol").run(world, 1)[0].finished.usage.cached_tokens == 0


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


KV_DAMAGE: dict[str, Callable[[Path], None]] = {
    "index": lambda path: flip(path, 80),
    "chunk": lambda path: flip(path, -4096 - 100),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("damage", KV_DAMAGE.values(), ids=KV_DAMAGE)
def test_damaged_kv_is_dropped_and_computed_anew(
    own_library: Library, fresh: list[str], damage: Callable[[Path], None]
):
    own_library.add(MODEL, NAME)
    conversation = Conversation()
    with own_library.open() as world:
        conversation.run(world, 2)
        wait_for_sealing(world, 1)
        world.recall(None)
        for path in sealed(own_library):
            damage(path)
        answer = conversation.ask(world, QUESTIONS[2])
        assert answer.text == fresh[2]
        assert answer.finished.usage.cached_tokens == 0
        assert world.status().kv.damaged >= 1
        wait_for_sealing(world, 2)
    for path in sealed(own_library):
        damage(path)
    with own_library.open() as world:
        answer = conversation.ask(world, QUESTIONS[3])
        assert answer.text == fresh[3]
        assert answer.finished.usage.cached_tokens == 0
        assert world.status().kv.resumed == 0


def test_files_that_are_no_kv_at_all_are_swept(own_library: Library, fresh: list[str]):
    own_library.add(MODEL, NAME)
    conversation = Conversation()
    with own_library.open() as world:
        conversation.run(world, 2)
        wait_for_sealing(world, 1)
    path = sealed(own_library)[0]
    garbage = path.with_name(path.name.replace(path.stem.split("-")[1], "0" * 32))
    garbage.write_bytes(b"\0" * 10_000)
    path.write_bytes(path.read_bytes()[:5000])
    with own_library.open() as world:
        assert conversation.ask(world, QUESTIONS[2]).text == fresh[2]
        assert world.status().kv.damaged == 2
    assert garbage not in sealed(own_library)


def test_sealed_kv_holds_no_word_of_the_conversation(own_library: Library):
    own_library.add(MODEL, NAME)
    with own_library.open() as world:
        Conversation("owner-canary").run(world, 3)
        wait_for_sealing(world, 1)
    for path in sealed(own_library):
        data = path.read_bytes()
        assert b"owner-canary" not in data
        assert b"Flex-Mem" not in data


def test_removing_a_model_removes_its_conversations(own_library: Library):
    own_library.add(MODEL, NAME)
    with own_library.open() as world:
        Conversation().run(world, 2)
        wait_for_sealing(world, 1)
    assert sealed(own_library)
    own_library.store.remove(NAME)
    assert not sealed(own_library)


def test_many_at_once_get_the_answers_that_each_gets_alone(library: Library, fresh: list[str]):
    prompts = [ChatPrompt([ChatMessage("user", question)]) for question in QUESTIONS]
    with library.open() as world:
        alone = [world.result(world.submit(NAME, prompt, TOKENS_OF_TURN)).text for prompt in prompts]
        numbers = [world.submit(NAME, prompt, TOKENS_OF_TURN) for _ in range(6) for prompt in prompts]
        together = [world.result(number).text for number in numbers]
    assert alone[0] == fresh[0]
    assert together == alone * 6


def test_sequences_with_holes_between_them_are_computed_right(library: Library):
    """Requests of very different lengths leave slots empty between busy ones."""
    source = library.file("small-llama", "q4_0")
    name = library.add(source, "holes")
    wanted = {(p, n): library.answer(source, p, n) for p in ("Once.", "Kato bime.") for n in (2, 5, 40)}
    with library.open(parallel=3) as world:
        asked = [*wanted] * 4
        numbers = [world.submit(name, TextPrompt(prompt), tokens) for prompt, tokens in asked]
        for request, number in zip(asked, numbers, strict=True):
            assert world.result(number).text == wanted[request]
