"""What the memory manager and the model manager hear of requests, and what they do for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from scheduled import Server, steps

from flexserve.errors import CallerError, GrantRefusedError, InternalError
from flexserve.protocol.answers import Failed, Finished, Timings
from flexserve.protocol.statuses import ComputeStatus
from flexserve.protocol.trusted_app import Kind, Missing, Work
from flexserve.testing.fake_app import CHUNK, FakeApp, FakeModel


def test_all_that_fit_begin_before_the_first_graph(serve: Callable[..., Server]):
    server = serve()
    go_on = server.held_back("a")
    numbers = [server.submit("a", prompt=1, answer=1).ticket.request for _ in range(3)]
    go_on()
    server.ends(4)
    assert steps(server.app) == [("a", tuple(numbers), 8)]


@pytest.mark.parametrize(
    ("work", "how"),
    [
        (Work.GENERATE, {"plaintext": 4 * CHUNK}),
        (Work.GENERATE, {"broken": GrantRefusedError("No memory.", missing=CHUNK)}),
        (Work.EMBED, {"broken": GrantRefusedError("No memory.", missing=CHUNK)}),
    ],
    ids=["plaintext", "generation", "vectors"],
)
def test_other_models_make_way_for_a_request_and_not_its_own(
    serve: Callable[..., Server], work: Work, how: dict[str, Any]
):
    app = FakeApp(7 * CHUNK, a=FakeModel(2 * CHUNK), b=FakeModel(4 * CHUNK))
    server = serve(app)
    for model in "ab":
        server.submit(model, Work.WARM)
    server.ends(2)
    server.submit("a", work, **how)
    (end,) = server.ends(1)
    assert isinstance(end, Finished)
    assert {call[1] for call in app.calls if call[0] == "evict"} == {"b"}


@pytest.mark.parametrize(
    ("work", "how"),
    [(Work.GENERATE, {}), (Work.EMBED, {"broken": GrantRefusedError("No memory.", missing=CHUNK)})],
    ids=["generation", "vectors"],
)
def test_the_weights_of_its_own_model_do_not_make_way_for_a_request(
    serve: Callable[..., Server], work: Work, how: dict[str, Any]
):
    server = serve(FakeApp(2 * CHUNK, a=FakeModel(2 * CHUNK)))
    server.submit("a", Work.WARM)
    server.submit("a", work, **how)
    end = server.ends(2)[1]
    assert isinstance(end, Failed)
    assert end.failure.code == "memory_refused"
    assert server.app.models["a"].weights == 2 * CHUNK


def test_other_models_make_way_for_one_that_cannot_be_opened_otherwise(serve: Callable[..., Server]):
    server = serve()
    server.submit("b", Work.WARM)
    server.ends(1)
    server.app.models["a"].error = GrantRefusedError("No memory.", missing=CHUNK)
    evict = server.app.evict

    def evicting(*what: Any, **how: Any) -> int:
        server.app.models["a"].error = None
        return evict(*what, **how)

    server.app.evict = evicting  # type: ignore[method-assign]
    server.submit("a")
    assert isinstance(server.ends(1)[0], Finished)
    assert server.app.models["b"].weights == 3 * CHUNK
    assert server.models.statuses()[1].gone == "made way for a"


def test_others_make_way_again_for_a_generation_that_is_refused_memory_as_it_goes_on(
    serve: Callable[..., Server],
):
    server = serve()
    server.submit("b", Work.WARM)
    server.ends(1)
    refusals = [GrantRefusedError("No memory.", missing=CHUNK)]

    def resume(request: int) -> int:
        if refusals:
            raise refusals.pop()
        return server.app.requests[request].pending

    server.app.resume = resume  # type: ignore[method-assign]
    server.submit("a", broken=GrantRefusedError("No memory.", missing=CHUNK))
    assert isinstance(server.ends(1)[0], Finished)
    assert server.app.models["b"].weights == 2 * CHUNK
    assert server.models.statuses()[1].gone == "made way for a"


@pytest.mark.parametrize(("work", "given_up"), [(Work.WARM, 3 * CHUNK), (Work.EMBED, CHUNK)])
def test_others_make_way_for_all_of_a_model_only_where_all_of_it_is_wanted(
    serve: Callable[..., Server], work: Work, given_up: int
):
    app = FakeApp(5 * CHUNK, a=FakeModel(4 * CHUNK), b=FakeModel(4 * CHUNK))
    server = serve(app)
    server.submit("b", Work.WARM)
    server.ends(1)
    app.missing = lambda model: Missing(4 * CHUNK, 2 * CHUNK, CHUNK)  # type: ignore[method-assign]
    server.submit("a", work)
    server.ends(1)
    assert [call[1:4] for call in app.calls if call[0] == "evict"] == [("b", Kind.WEIGHTS, given_up)]


def test_texts_of_one_request_for_vectors_count_as_one_graph_and_warming_as_none(
    serve: Callable[..., Server],
):
    server = serve()
    for work, computed in ((Work.WARM, ComputeStatus(0, 0)), (Work.EMBED, ComputeStatus(1, 1))):
        server.submit("a", work)
        server.ends(1)
        assert server.scheduler.computed() == computed


def test_vectors_count_as_a_request_to_their_model(serve: Callable[..., Server]):
    server = serve()
    server.submit("a", Work.EMBED, prompt=12, next_model="b")
    server.ends(1)
    assert ("load", "b", 4 * CHUNK) in server.app.calls
    profile = server.policy.profile("a", CHUNK, time.monotonic(), pinned=False)
    assert (profile.rate > 0, profile.prompt) == (True, 12.0)


def test_a_generation_tells_how_fast_its_models_prompts_are(serve: Callable[..., Server]):
    server = serve()
    server.submit("a", prompt=100, timings=Timings(prefill=1000))
    server.ends(1)
    profile = server.policy.profile("a", CHUNK, time.monotonic(), pinned=False)
    assert (profile.prompt, profile.speeds.prefill) == (100.0, 100.0)


def trouble(server: Server, model: str) -> str | None:
    (status,) = [status for status in server.models.statuses() if status.name == model]
    return status.error.message if status.error else None


def test_a_models_trouble_is_told_until_it_answers_again_and_a_callers_mistake_is_not_its_trouble(
    serve: Callable[..., Server],
):
    server = serve()
    server.submit("a", ability=CallerError("It makes no text."))
    server.ends(1)
    assert trouble(server, "a") is None
    server.submit("a", broken=InternalError("A bug."))
    server.ends(1)
    assert trouble(server, "a") == "A bug."
    server.submit("a")
    server.ends(1)
    assert trouble(server, "a") is None


def test_a_draft_is_brought_in_and_guesses(serve: Callable[..., Server]):
    server = serve()
    server.scheduler.use_drafts({"a": "b"})
    server.submit("a", answer=60, right=8)
    server.ends(1)
    calls = server.app.calls
    assert ("load", "b", 4 * CHUNK) in calls
    guesses = [call for call in calls if call[0] == "guess"]
    assert 0 < server.scheduler.computed().checks <= len(guesses), (
        "there is nothing to guess of the last token"
    )


def test_that_a_draft_cannot_guess_is_its_trouble(serve: Callable[..., Server]):
    server = serve()

    def guess(_request: int, _draft: str, _count: int) -> int:
        raise CallerError("Their vocabularies differ.")

    server.app.guess = guess  # type: ignore[method-assign, assignment]
    server.scheduler.use_drafts({"a": "b"})
    server.submit("a", answer=60)
    assert isinstance(server.ends(1)[0], Finished)
    assert trouble(server, "b") == "Their vocabularies differ."


def test_a_generation_that_cannot_go_on_ends(serve: Callable[..., Server]):
    server = serve()
    server.submit("b", Work.WARM)
    server.ends(1)

    def resume(_request: int) -> int:
        raise InternalError("It is broken.")

    server.app.resume = resume  # type: ignore[method-assign, assignment]
    server.submit("a", broken=GrantRefusedError("No memory.", missing=CHUNK))
    (end,) = server.ends(1)
    assert isinstance(end, Failed)
    assert end.failure.code == "memory_refused"


def test_a_generation_that_is_cancelled_in_another_models_turn_ends(serve: Callable[..., Server]):
    server = serve()
    cancelled = server.submit("a", prompt=1, answer=1 << 40).ticket.request
    begun = threading.Event()
    server.app.inside = begun.set
    assert begun.wait(timeout=20)

    def inside() -> None:
        if server.app.models["b"].users:
            server.scheduler.cancel(cancelled)

    server.app.inside = inside
    server.submit("b", prompt=1, answer=1)
    ends = {end.request: end for end in server.ends(2)}
    end = ends[cancelled]
    assert isinstance(end, Failed)
    assert end.failure.code == "cancelled"
