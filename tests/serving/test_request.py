"""The queue: who is next, who runs, who is taken out."""

from __future__ import annotations

from flexserve.protocol.trusted_app import Ticket, Work
from flexserve.serving.request import Request, Requests


def request(number: int, *, model: str = "a", received: float = 0.0, priority: int = 0) -> Request:
    return Request(Ticket(number, model, Work.GENERATE, received, priority))


def queue(*requests: Request) -> Requests:
    found = Requests()
    for each in requests:
        found.add(each)
    return found


def numbers(requests: list[Request]) -> list[int]:
    return [each.number for each in requests]


def test_a_new_request_is_no_generation_that_began_and_nothing_ended_it() -> None:
    new = request(7, model="b")
    assert (new.number, new.model, new.cancelled, new.pending, new.error) == (7, "b", False, 0, None)


def test_requests_wait_in_the_order_in_which_they_came_whatever_the_order_in_which_they_are_queued() -> None:
    waiting = queue(*(request(number, received=when) for number, when in ((1, 5.0), (2, 3.0), (3, 4.0))))
    assert numbers(waiting.waiting()) == [2, 3, 1]


def test_of_those_that_came_at_the_same_moment_the_first_that_was_queued_is_first() -> None:
    waiting = queue(*(request(number, received=5.0) for number in (4, 1, 3)))
    assert numbers(waiting.waiting()) == [4, 1, 3]


def test_the_next_of_a_model_is_its_oldest_of_the_highest_priority() -> None:
    waiting = queue(
        request(1, model="b", priority=9),
        request(2, received=1.0),
        request(3, received=2.0, priority=1),
        request(4, received=3.0, priority=1),
    )
    taken = [waiting.take("a") for _ in range(3)]
    assert [each and each.number for each in taken] == [3, 4, 2]
    assert numbers(waiting.running()) == [3, 4, 2]
    assert numbers(waiting.waiting()) == [1]


def test_a_model_that_nobody_asks_has_no_next_one() -> None:
    waiting = queue(request(1, model="b"))
    assert waiting.take("a") is None
    assert (numbers(waiting.waiting()), waiting.running()) == ([1], [])


def test_a_request_that_is_put_back_waits_where_it_waited() -> None:
    waiting = queue(*(request(number, received=float(number)) for number in range(4)))
    first = waiting.take("a")
    assert first is not None
    waiting.put_back(first)
    assert (numbers(waiting.waiting()), waiting.running()) == ([0, 1, 2, 3], [])


def test_a_request_that_ended_is_forgotten_and_no_other_one() -> None:
    waiting = queue(request(1), request(2, received=1.0))
    ended, other = waiting.take("a"), waiting.take("a")
    assert ended is not None
    waiting.remove(ended)
    assert waiting.running() == [other]


def test_those_that_wait_are_told_for_one_model_or_for_all() -> None:
    waiting = queue(request(1), request(2, model="b"))
    assert [numbers(waiting.waiting(model)) for model in (None, "a", "b", "c")] == [[1, 2], [1], [2], []]


def test_what_runs_is_told_as_it_is_now() -> None:
    waiting = queue(request(1), request(2, received=1.0))
    waiting.take("a")
    running = waiting.running()
    waiting.take("a")
    assert numbers(running) == [1]


def test_one_request_or_all_that_wait_are_taken_out_and_those_that_run_are_not() -> None:
    waiting = queue(*(request(number, received=float(number)) for number in range(4)))
    waiting.take("a")
    assert waiting.drop_waiting(0) == [], "it runs"
    assert numbers(waiting.drop_waiting(2)) == [2]
    assert numbers(waiting.waiting()) == [1, 3]
    assert numbers(waiting.drop_waiting()) == [1, 3]
    assert (waiting.waiting(), numbers(waiting.running())) == ([], [0])
