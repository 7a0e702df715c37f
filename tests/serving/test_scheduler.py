"""The queue and the engine's turns, over an application without an engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from scheduled import Preparation, Server, steps

from flexserve.errors import CallerError, GrantRefusedError, InternalError, StoredDataError
from flexserve.protocol.answers import Failed, Finished
from flexserve.protocol.messages import Computing
from flexserve.protocol.trusted_app import Work
from flexserve.testing.fake_app import CHUNK, FakeApp, FakeModel


def test_a_generation_is_prepared_computed_to_its_end_and_forgotten(serve: Callable[..., Server]):
    server = serve()
    request = server.submit("a", prompt=20, answer=3)
    number = request.ticket.request
    [end] = server.ends(1)
    assert isinstance(end, Finished)
    assert end.request == number
    # 20 tokens in graphs of 8, then two more graphs for the second and third token of the answer.
    assert steps(server.app) == [("a", (number,), limit) for limit in (8, 8, 4, 8, 8)]
    assert server.app.requests == {}
    assert server.scheduler.counts() == (0, 0)


def test_the_memory_is_free_before_the_client_hears_of_the_end(serve: Callable[..., Server]):
    server = serve()
    request = server.submit("a")
    server.ends(1)
    assert ("end", request.ticket.request) in server.app.calls


def test_generations_of_one_model_are_computed_together(serve: Callable[..., Server]):
    server = serve()
    go_on = server.held_back("a")
    numbers = [server.submit("a", prompt=1, answer=3).ticket.request for _ in range(3)]
    go_on()
    server.ends(4)
    assert ("a", tuple(numbers), 8) in steps(server.app)
    computed = server.scheduler.computed()
    assert computed.graphs == len(steps(server.app))
    assert computed.requests == sum(len(requests) for _, requests, _ in steps(server.app))  # type: ignore[misc, arg-type]


def test_a_request_for_which_no_sequence_is_free_waits(serve: Callable[..., Server]):
    app = FakeApp(a=FakeModel(CHUNK, sequences=1))
    server = serve(app)
    go_on = server.held_back("a")
    first, second = server.submit("a"), server.submit("a")
    go_on()
    ends = server.ends(3)
    assert [end.request for end in ends[1:]] == [first.ticket.request, second.ticket.request]


def test_no_more_run_at_once_than_the_server_allows(serve: Callable[..., Server]):
    server = serve(sequences=2)
    go_on = server.held_back("a")
    for _ in range(5):
        server.submit("a", prompt=1, answer=4)
    go_on()
    server.ends(6)
    assert max(len(requests) for _, requests, _ in steps(server.app)) == 2  # type: ignore[misc, arg-type]


def test_a_higher_priority_goes_first_and_the_oldest_of_equals(serve: Callable[..., Server]):
    server = serve(sequences=1)
    go_on = server.held_back("a")
    low, old, young, high = (
        server.submit("a", answer=1, priority=priority).ticket.request for priority in (-1, 0, 0, 5)
    )
    go_on()
    assert [end.request for end in server.ends(5)][1:] == [high, old, young, low]


def test_a_full_queue_refuses_at_once_and_forgets(serve: Callable[..., Server]):
    server = serve(limit=1)
    go_on = server.held_back("a")
    server.submit("a")
    refused = server.submit("a").ticket.request
    [end] = server.ends(1)
    assert isinstance(end, Failed)
    assert (end.request, end.failure.code) == (refused, "queue_full")
    assert end.failure.message == "1 requests are waiting."
    assert end.failure.hint == "Try again in a few seconds."
    assert refused not in server.app.requests
    go_on()
    server.ends(2)


def test_a_request_that_waits_is_cancelled_at_once(serve: Callable[..., Server]):
    server = serve()
    go_on = server.held_back("a")
    number, other = (server.submit("a").ticket.request for _ in range(2))
    assert server.scheduler.counts() == (2, 1)
    server.scheduler.cancel(number)
    [end] = server.ends(1)
    assert isinstance(end, Failed)
    assert (end.request, end.failure.code) == (number, "cancelled")
    assert end.failure.message == "The request was cancelled."
    assert server.scheduler.counts() == (1, 1)
    assert number not in server.app.requests
    go_on()
    assert server.ends(2)[1].request == other
    assert ("begin", number) not in server.app.calls


def test_a_request_that_computes_is_stopped_and_the_others_go_on(serve: Callable[..., Server]):
    server = serve()
    go_on = server.held_back("a")
    stopped, other = (server.submit("a", prompt=1, answer=50).ticket.request for _ in range(2))
    server.app.inside = lambda: server.scheduler.cancel(stopped)
    go_on()
    by_number = {end.request: end for end in server.ends(3)}
    assert isinstance(by_number[stopped], Failed)
    assert isinstance(by_number[other], Finished)


def test_a_request_that_the_application_cannot_break_off_ends_before_its_next_graph(
    serve: Callable[..., Server],
):
    server = serve()
    go_on = server.held_back("a")
    stopped = server.submit("a", prompt=1, answer=1 << 40).ticket.request
    server.app.stop = lambda request: None  # type: ignore[method-assign]
    server.app.inside = lambda: server.scheduler.cancel(stopped)
    go_on()
    end = server.ends(2)[1]
    assert isinstance(end, Failed)
    assert (end.request, end.failure.code) == (stopped, "cancelled")
    assert len(steps(server.app)) == 1


def test_the_application_hears_at_once_that_what_it_computes_is_cancelled(serve: Callable[..., Server]):
    server = serve()
    go_on = server.held_back("a")
    ((number, request),) = server.app.requests.items()
    server.scheduler.cancel(number)
    assert request.stopped
    go_on()
    server.ends(1)


def test_a_request_that_is_cancelled_while_it_is_prepared_does_not_begin(serve: Callable[..., Server]):
    server = serve()
    preparation = Preparation(server)
    number = server.submit("a").ticket.request
    done = preparation.begun()
    server.scheduler.cancel(number)
    done(None)
    [end] = server.ends(1)
    assert isinstance(end, Failed)
    assert end.failure.code == "cancelled"
    assert ("begin", number) not in server.app.calls


def test_the_model_whose_request_is_the_oldest_has_its_turn_first(serve: Callable[..., Server]):
    server = serve(FakeApp(1 << 40, **{name: FakeModel(4 * CHUNK) for name in "abc"}))
    go_on = server.held_back("c")
    numbers = [server.submit(model, prompt=1, answer=1).ticket.request for model in "ab"]
    go_on()
    assert [end.request for end in server.ends(3)][1:] == numbers


def test_a_cancelled_number_that_nobody_knows_changes_nothing(serve: Callable[..., Server]):
    server = serve()
    server.scheduler.cancel(12345)
    server.submit("a")
    assert isinstance(server.ends(1)[0], Finished)


@pytest.mark.parametrize("work", [Work.WARM, Work.EMBED, Work.TRY])
def test_what_is_no_generation_is_run_in_one_go(serve: Callable[..., Server], work: Work):
    server = serve()
    request = server.submit("a", work)
    assert isinstance(server.ends(1)[0], Finished)
    assert ("run", request.ticket.request) in server.app.calls
    assert server.app.models["a"].weights == (0 if work is Work.TRY else 4 * CHUNK)


def test_what_a_model_cannot_do_is_refused_before_it_is_opened(serve: Callable[..., Server]):
    server = serve()
    server.submit("a", ability=CallerError("It makes no text.", code="generation_unsupported"))
    [end] = server.ends(1)
    assert isinstance(end, Failed)
    assert end.failure.code == "generation_unsupported"
    assert ("open", "a") not in server.app.calls


def test_a_request_that_cannot_be_prepared_hears_why(serve: Callable[..., Server]):
    server = serve()
    server.submit("a", preparing=CallerError("The prompt is empty.", code="prompt_empty"))
    [end] = server.ends(1)
    assert isinstance(end, Failed)
    assert end.failure.code == "prompt_empty"


def test_an_unknown_model_is_the_callers_mistake(serve: Callable[..., Server]):
    server = serve()
    app = server.app
    app.models["gone"] = FakeModel(CHUNK)
    request = app.ask("gone")
    del app.models["gone"]
    app.models["gone"] = FakeModel(CHUNK, error=StoredDataError("It is damaged."))
    server.scheduler.submit(request.ticket)
    [end] = server.ends(1)
    assert isinstance(end, Failed)
    assert end.failure.blame == "stored_data"
    [status] = [status for status in server.models.statuses() if status.name == "gone"]
    assert status.error is not None
    assert status.error.message == "It is damaged."


def test_what_breaks_a_step_ends_that_request_alone(serve: Callable[..., Server]):
    server = serve()
    go_on = server.held_back("a")
    broken = server.submit("a", answer=9, broken=InternalError("A bug.")).ticket.request
    other = server.submit("a", answer=9).ticket.request
    go_on()
    by_number = {end.request: end for end in server.ends(3)}
    assert isinstance(by_number[broken], Failed)
    assert isinstance(by_number[other], Finished)


def test_an_exception_that_nobody_foresaw_is_told_by_its_type_only(serve: Callable[..., Server]):
    server = serve()

    def prepare(_request: int, _done: object) -> None:
        raise ZeroDivisionError("a secret of the prompt")

    server.app.prepare = prepare  # type: ignore[method-assign, assignment]
    server.submit("a")
    [end] = server.ends(1)
    assert isinstance(end, Failed)
    assert end.failure.blame == "bug"
    assert "secret" not in end.failure.message
    assert "ZeroDivisionError" in end.failure.message


def test_memory_that_a_step_was_refused_is_taken_from_idle_models_and_it_goes_on(
    serve: Callable[..., Server],
):
    server = serve()
    server.submit("b", Work.WARM)
    server.ends(1)
    request = server.submit("a", broken=GrantRefusedError("No memory.", missing=CHUNK))
    assert isinstance(server.ends(1)[0], Finished)
    assert ("resume", request.ticket.request) in server.app.calls
    assert server.app.models["b"].weights == 3 * CHUNK
    assert server.models.statuses()[1].gone == "made way for a"


def test_memory_that_nobody_has_ends_the_request(serve: Callable[..., Server]):
    server = serve()
    server.submit("a", broken=GrantRefusedError("No memory.", missing=CHUNK))
    [end] = server.ends(1)
    assert isinstance(end, Failed)
    assert end.failure.code == "memory_refused"


def test_the_normal_world_is_told_whose_turn_it_is(serve: Callable[..., Server]):
    server = serve()
    server.submit("a")
    told: list[str] = []
    while not told or told[-1]:
        message = server.receive()
        if isinstance(message, Computing):
            told.append(message.model)
    assert told == ["a", ""]


def test_an_announced_model_is_brought_in_while_the_present_one_computes(serve: Callable[..., Server]):
    server = serve()
    server.submit("a", next_model="b")
    server.ends(1)
    assert ("load", "b", 4 * CHUNK) in server.app.calls


def test_a_server_that_ends_lets_what_runs_end_and_turns_the_rest_away(serve: Callable[..., Server]):
    server = serve()
    go_on = server.held_back("a")
    waiting = server.submit("a").ticket.request
    ended = threading.Thread(target=server.scheduler.drain, args=(20,))
    ended.start()
    turned_away = server.ends(1)[0]
    assert isinstance(turned_away, Failed)
    assert turned_away.request == waiting
    go_on()
    assert isinstance(server.ends(1)[0], Finished)
    ended.join(timeout=20)
    late = server.submit("a").ticket.request
    end = server.ends(1)[0]
    assert isinstance(end, Failed)
    assert (end.request, end.failure.code) == (late, "cancelled")
    assert end.failure.message == "The server is shutting down."
    assert not server.app.models["a"].is_open


def test_a_server_that_ends_lets_what_is_prepared_end(serve: Callable[..., Server]):
    server = serve()
    preparation = Preparation(server)
    server.submit("a")
    done = preparation.begun()
    ended = threading.Thread(target=server.scheduler.drain, args=(20,))
    ended.start()
    while not server.scheduler._closing:
        time.sleep(0.001)
    done(None)
    assert isinstance(server.ends(1)[0], Finished)
    ended.join(timeout=20)


def test_a_server_that_ends_stops_what_takes_too_long(serve: Callable[..., Server]):
    server = serve()
    go_on = server.held_back("a")
    endless = server.submit("a", answer=1 << 40).ticket.request
    go_on()
    server.ends(1)
    server.scheduler.drain(0.1)
    assert server.ends(1)[0].request == endless


def test_a_conversion_is_prepared_and_brings_no_weights_in(serve: Callable[..., Server]):
    server = serve()
    request = server.submit("a", Work.CONVERT)
    (end,) = server.ends(1)
    assert isinstance(end, Finished)
    assert request.prepared
    assert ("run", request.ticket.request) in server.app.calls
    assert server.app.models["a"].weights == 0


def test_a_conversion_does_not_say_how_long_its_model_is_kept_unless_it_does(serve: Callable[..., Server]):
    server = serve()
    for work, keep, kept in (
        (Work.GENERATE, 0.0, False),
        (Work.CONVERT, None, False),
        (Work.CONVERT, -1.0, True),
        (Work.GENERATE, None, None),
    ):
        server.submit("a", work, keep_alive=keep)
        server.ends(1)
        assert server.models.is_kept("a", float("inf")) is kept


def test_a_conversion_that_cannot_be_prepared_says_why(serve: Callable[..., Server]):
    server = serve()
    server.submit("a", Work.CONVERT, preparing=CallerError("It is too long."))
    (end,) = server.ends(1)
    assert isinstance(end, Failed)
    assert end.failure.message == "It is too long."
