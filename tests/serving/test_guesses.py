"""When a draft guesses: for one request, when it is in memory, and as long as it can."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from flexserve.errors import CallerError, FlexServeError, GrantRefusedError
from flexserve.policy.guessing import MOST
from flexserve.protocol.trusted_app import Progress, Ticket
from flexserve.serving import guesses
from flexserve.serving.guesses import Guesses
from flexserve.serving.request import Request
from flexserve.testing.fake_app import CHUNK, FakeApp, FakeModel, FakeRequest


class Measured:
    """A policy that has three tokens guessed before each graph, and what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def count(self) -> int:
        return 3

    def checked(self, *what: float) -> None:
        self.told.append(("checked", *what))

    def computed(self, seconds: float) -> None:
        self.told.append(("computed", seconds))


class Rig:
    """A model "big" that answers with the guesses of "small", step by step."""

    def __init__(self, *, weights: int = CHUNK, right: int = MOST) -> None:
        self.app = FakeApp(
            big=FakeModel(4 * CHUNK, is_open=True), small=FakeModel(CHUNK, is_open=True, weights=weights)
        )
        self.fetched: list[str] = []
        self.refusals: list[tuple[str, FlexServeError]] = []
        self.guesses = Guesses(
            self.app,
            self.fetched.append,
            lambda draft, error: self.refusals.append((draft, error)),
        )
        self.guesses.use({"big": "small"})
        self.right = right

    def request(self) -> tuple[Request, FakeRequest]:
        asked = self.app.ask("big", answer=1000, right=self.right)
        self.app.begin(asked.ticket.request)
        request = Request(asked.ticket)
        request.pending = asked.pending = 1
        return request, asked

    def step(self, *requests: Request) -> Sequence[Progress]:
        numbers = [request.number for request in requests]
        return self.guesses.stepped("big", requests, lambda: self.app.step("big", numbers, 8))

    @property
    def made(self) -> list[tuple[object, ...]]:
        return [call for call in self.app.calls if call[0] == "guess"]


def test_one_request_gets_the_guesses_that_are_right() -> None:
    rig = Rig()
    request, asked = rig.request()
    for _ in range(5):
        rig.step(request)
    assert rig.made[0] == ("guess", request.number, "small", 3)
    assert asked.answer < 1000 - 5
    assert rig.guesses.checks == len(rig.made)


def test_several_requests_in_one_graph_get_none() -> None:
    rig = Rig()
    requests = [rig.request()[0] for _ in range(2)]
    for _ in range(5):
        rig.step(*requests)
    assert rig.made == []


def test_memory_is_looked_at_only_before_a_guess() -> None:
    rig = Rig(right=0)
    request, _ = rig.request()
    looks: list[None] = []
    memory = rig.app.memory
    rig.app.memory = lambda: looks.append(None) or memory()  # type: ignore[func-returns-value, method-assign]
    for _ in range(60):
        rig.step(request)
    assert len(looks) == len(rig.made) > 0


def test_a_prompt_gets_none() -> None:
    rig = Rig()
    request, asked = rig.request()
    request.pending = asked.pending = 20
    for _ in range(2):
        rig.step(request)
    assert rig.made == []


def test_a_draft_that_is_not_in_memory_whole_guesses_nothing_and_is_brought_in() -> None:
    rig = Rig(weights=0)
    request, _ = rig.request()
    rig.guesses.begun("big")
    for _ in range(5):
        rig.step(request)
    assert rig.made == []
    assert rig.fetched == ["small"]
    rig.app.models["small"].weights = CHUNK
    rig.guesses.begun("big")
    rig.step(request)
    assert len(rig.made) == 1
    assert rig.fetched == ["small"]


def test_a_model_without_a_draft_is_computed_as_ever() -> None:
    rig = Rig()
    request = Request(Ticket(1, "small", rig.request()[0].ticket.work, 0.0))
    assert rig.guesses.stepped("small", [request], lambda: [Progress(1, 1)]) == [Progress(1, 1)]
    rig.guesses.begun("small")
    assert rig.fetched == []


def test_a_draft_that_cannot_guess_for_a_model_is_asked_again_when_it_is_named_anew() -> None:
    rig = Rig()
    error = rig.app.models["small"].error = CallerError("Their vocabularies differ.")
    request, _ = rig.request()
    for _ in range(6):
        rig.step(request)
    assert len(rig.made) == 1
    assert rig.refusals == [("small", error)]
    assert rig.guesses.checks == 0
    rig.app.models["small"].error = None
    rig.guesses.use({"big": "small"})
    rig.step(request)
    assert rig.guesses.checks == 1, "by now another model may have its name"


def test_a_draft_that_may_not_guess_is_asked_once_for_each_request_and_it_is_said_why() -> None:
    rig = Rig()
    error = rig.app.models["small"].error = CallerError("Its licence has expired.")
    for number in (1, 2):
        request, _ = rig.request()
        for _ in range(6):
            rig.step(request)
        assert len(rig.made) == number
        assert rig.refusals == [("small", error)] * number
    rig.app.models["small"].error = None
    rig.step(rig.request()[0])
    assert len(rig.made) == 3, "the vendor's new licence lets it guess again"


def test_memory_that_is_refused_ends_guessing_for_a_while_only() -> None:
    rig = Rig()
    rig.app.models["small"].error = GrantRefusedError("None.", missing=1)
    request, _ = rig.request()
    for _ in range(10):
        rig.step(request)
    assert len(rig.made) == 1
    assert rig.refusals == []
    assert rig.guesses.checks == 0


def test_the_policy_hears_what_guesses_cost_and_what_they_brought(monkeypatch: pytest.MonkeyPatch) -> None:
    now, policy = 100.0, Measured()
    monkeypatch.setattr(guesses, "Guessing", lambda: policy)
    monkeypatch.setattr(guesses, "time", SimpleNamespace(monotonic=lambda: now))
    rig = Rig(right=2)
    request, _ = rig.request()
    guess = rig.app.guess

    def slow_guess(number: int, draft: str, count: int) -> int:
        nonlocal now
        now += 5
        return guess(number, draft, count)

    def slow_graph() -> None:
        nonlocal now
        now += 7

    rig.app.guess, rig.app.inside = slow_guess, slow_graph  # type: ignore[method-assign, assignment]
    rig.step(request)
    rig.app.models["small"].weights = 0
    rig.step(request)
    assert policy.told == [("checked", 3, 2, 5.0, 7.0), ("computed", 7.0)]


def test_a_draft_that_cannot_guess_now_costs_nothing_but_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Measured()
    monkeypatch.setattr(guesses, "Guessing", lambda: policy)
    rig = Rig()
    rig.app.guess = lambda request, draft, count: 0  # type: ignore[method-assign]
    rig.step(rig.request()[0])
    assert [what[0] for what in policy.told] == ["computed"]
    assert rig.guesses.checks == 0


def test_each_pair_of_models_is_measured_for_itself() -> None:
    rig = Rig()
    rig.app.models["other"] = FakeModel(CHUNK, is_open=True, weights=CHUNK)
    request, _ = rig.request()
    for _ in range(3):
        rig.step(request)
    made = len(rig.made)
    assert made > 0
    rig.guesses.use({"big": "other"})
    rig.step(request)
    assert len(rig.made) == made, "nothing is known of this pair"


@pytest.mark.parametrize("right", [0, 2])
def test_answers_go_on_token_by_token_where_guesses_are_wrong(right: int) -> None:
    rig = Rig(right=right)
    request, asked = rig.request()
    for _ in range(3):
        rig.step(request)
    assert asked.answer == 1000 - 3 - right
