"""What crosses the port between policy and mechanism never holds a piece of what a request says."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flexserve.protocol.answers import Delta, Failed, Finished, Timings, Usage
from flexserve.testing.port_recorder import Recorder

pytestmark = pytest.mark.engine

MODEL = Path(__file__).parents[2] / "models/tiny/flexserve-tiny.gguf"
CANARY = "zyzzogeton"
SECONDS = 60


@dataclasses.dataclass
class Crossed:
    """What crossed the port, by which methods, and what clients got."""

    values: list[str]
    methods: set[str]
    answers: list[str]
    ends: list[Finished]  # what policy heard of two answers that different stop strings ended
    stops: list[int]  # what their clients heard


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crossed]:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # the engine's hooks are for good
        yield pool.submit(_serve, tmp_path_factory.mktemp("world")).result()


def _serve(folder: Path) -> Crossed:
    """Run every kind of request."""
    import queue

    from flexserve.platforms.linux.secure_memory import PlainMemory
    from flexserve.protocol.memory import Recall
    from flexserve.protocol.prompts import ChatMessage, ChatPrompt, TextPrompt, ToText, ToTokens
    from flexserve.protocol.requests import Convert, Embed, Generate, Try, Warm
    from flexserve.protocol.sampling import Sampling
    from flexserve.protocol.statuses import KvStatus
    from flexserve.serving.memory_manager import MemoryManager
    from flexserve.serving.model_manager import ModelManager
    from flexserve.serving.scheduler import Scheduler
    from flexserve.trusted.app import LlamaApp
    from flexserve.trusted.engine.runtime import Engine
    from flexserve.trusted.limits import Limits, ModelLimits
    from flexserve.trusted.memory.flexmem import FlexMem, OpenHanded
    from flexserve.trusted.open_model import Services
    from flexserve.trusted.sidecar import start_helper
    from flexserve.trusted.store.keys import DeviceKey
    from flexserve.trusted.store.store import Store
    from flexserve.trusted.text.rendering.renderer import Renderer
    from flexserve.trusted.weights.residency import Residency
    from flexserve.units import GIB, KIB

    store = Store(folder / "store", DeviceKey.load_or_create(folder / "key"))
    store.add(MODEL, "tiny", lambda _done, _total: None)
    flexmem = FlexMem(PlainMemory(64 * KIB), 2 * GIB, OpenHanded())
    renderer = Renderer(start_helper())
    renderer.wait_until_ready()
    services = Services(
        Engine(flexmem, 1),
        Residency(flexmem, 1),
        store,
        renderer,
        ModelLimits(Limits(context=512, sequences=2, sealed_kv=GIB)),
        KvStatus(),
        shares_heap=True,
    )
    sent: queue.SimpleQueue[Any] = queue.SimpleQueue()
    app = LlamaApp(services, sent.put)
    recorder: Any = Recorder(app)
    models = ModelManager(recorder, idle=3600)
    memory = MemoryManager(recorder, models)
    scheduler = Scheduler(recorder, models, memory, sent.put, limit=16, sequences=2, patience=600.0)
    answers: list[str] = []

    stops: list[int] = []

    def ask(message: Any) -> Finished | None:
        ticket = app.admit(message)
        recorder.keep("ticket", ticket)
        scheduler.submit(ticket)
        while True:
            answer = sent.get(timeout=SECONDS)
            answers.append(answer.text if isinstance(answer, Delta) else f"\n{answer!r}\n")
            if isinstance(answer, Delta) and answer.stop is not None:
                stops.append(answer.stop)
            if isinstance(answer, Finished | Failed):
                return answer if isinstance(answer, Finished) else None

    turn = [ChatMessage("user", f"What is a {CANARY}?")]
    tool = f'[{{"type":"function","function":{{"name":"{CANARY}","parameters":{{"type":"object"}}}}}}]'
    schema = f'{{"type":"object","properties":{{"{CANARY}":{{"type":"integer"}}}},"required":["{CANARY}"]}}'
    few = Sampling(max_tokens=4, temperature=0)
    prompts: list[tuple[Any, Sampling]] = [
        (ChatPrompt(turn), few),
        (ChatPrompt([*turn, ChatMessage("assistant", CANARY), *turn]), few),
        (TextPrompt(f"{CANARY} " * 40), Sampling(max_tokens=4, temperature=0, stop=[CANARY], logprobs=2)),
        (ChatPrompt(turn), Sampling(max_tokens=40, temperature=0, schema=schema)),
        (ChatPrompt(turn, tools=tool, must_call=[CANARY]), few),
        (ChatPrompt(turn), Sampling(max_tokens=4, schema=f'{{"type":"{CANARY}"}}')),  # is refused
        (ChatPrompt([ChatMessage(CANARY, CANARY)]), few),  # so may this be, by the template
        (TextPrompt(CANARY * 4000), few),  # does not fit
        (TextPrompt(""), few),
    ]
    for number, (prompt, sampling) in enumerate(prompts):
        ask(Generate(number, "tiny", prompt, sampling, owner=CANARY))
    letters = list("aeiou")
    ends = [
        ask(Generate(number, "tiny", ChatPrompt(turn), Sampling(max_tokens=40, temperature=0, stop=stop)))
        for number, stop in ((90, letters), (91, [CANARY, *letters]))
    ]
    ask(Embed(100, "tiny", [CANARY, f"{CANARY} and more"], owner=CANARY))
    ask(Embed(101, "tiny", [CANARY * 4000], owner=CANARY))
    ask(Warm(102, "tiny"))
    ask(Try(103, "tiny"))
    sources: tuple[Any, ...] = (
        ToTokens(f"{CANARY} {CANARY}", pieces=True),
        ToText([1, 2, 3]),
        ChatPrompt(turn),
    )
    for number, source in enumerate(sources, 104):
        ask(Convert(number, "tiny", source))
    ask(Convert(107, "tiny", ToText([1 << 40])))  # is refused
    recorder.keep("answer", memory.answer(Recall(1, demand=1 << 20, deadline=1000)))
    recorder.keep("statuses", models.statuses())
    scheduler.drain(10)
    return Crossed(recorder.crossed, recorder.methods, answers, [end for end in ends if end], stops)


def test_no_piece_of_a_request_crosses_the_port(crossed: Crossed):
    found = [text for text in crossed.values if CANARY in text]
    assert found == []


def test_every_path_of_a_request_was_taken(crossed: Crossed):
    methods, answers = crossed.methods, crossed.answers
    assert {"prepare", "plaintext", "begin", "step", "run", "end", "evict", "memory", "missing"} <= methods
    assert sum(answer.startswith("\nFinished") for answer in answers) >= 8
    assert sum(answer.startswith("\nFailed") for answer in answers) >= 3
    assert CANARY in "".join(answers), "the client does get an answer that says it"


def test_no_token_and_no_weight_crosses_the_port(crossed: Crossed):
    # Bytes never do, and no list of numbers is longer than there are requests at once.
    for text in crossed.values:
        assert not re.search(r"(?<![0-9a-f])b['\"]", text)  # a digest in hex may end in a b
        assert "array(" not in text
        assert len(text) < 4000


def test_which_stop_string_ended_a_text_is_told_to_the_client_and_not_to_policy(crossed: Crossed):
    first, second = (
        msgspec.structs.replace(end, request=0, timings=Timings(), usage=Usage(0, 0)) for end in crossed.ends
    )
    assert first == second
    assert crossed.stops[1] == crossed.stops[0] + 1


class _Leaky:
    """An application that tells what it should not."""

    def step(self, _request: int) -> str:
        return CANARY

    def begin(self, _request: int) -> None:
        raise ValueError(CANARY)


def test_the_recorder_finds_what_leaks():
    recorder: Any = Recorder(_Leaky())
    recorder.step(1)
    with pytest.raises(ValueError, match=CANARY):
        recorder.begin(1)
    assert sum(CANARY in text for text in recorder.crossed) == 2
