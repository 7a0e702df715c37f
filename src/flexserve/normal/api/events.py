"""GET /events: memory, models, decisions and requests as they change, for those who watch a server.

Names, sizes, counts and times; never what was asked or answered. It wakes no model and resets no idle timer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from flexserve.errors import FlexServeError
from flexserve.normal.api.operations import described_states, world_of
from flexserve.normal.api.sse import EventStream, named_event
from flexserve.normal.audit_log import Decision
from flexserve.normal.request_log import Request as Asked
from flexserve.normal.sampler import PERIOD, Sample, Sampler
from flexserve.normal.world import World, WorldReport

router = APIRouter(tags=["operations"])
_EVENTS = "text/event-stream"
Json = dict[str, Any]


@router.get("/events", response_class=Response, responses={200: {"content": {_EVENTS: {}}}})
async def events(request: Request, follow: bool = False) -> Response:
    """Show the state, the last decisions and the last requests; with `follow`, whatever changes from then on.

    Events, each with its `type`: `history` (sizes, look by look, first of all), `state` (each second),
    `decisions` and `requests` (new ones, and known ones that changed, by their numbers).
    """
    world, sampler = world_of(request), _sampler_of(request)
    if not follow:
        sample = await sampler.look()
        once = _Watcher(world).events(sampler.samples, sample)
        return Response(b"".join(once), headers={"Cache-Control": "no-cache"}, media_type=_EVENTS)
    sampler.enter()
    following = _following(world, sampler, request.state.admitted)
    return EventStream(following, after=sampler.leave, media_type=_EVENTS)


def _sampler_of(request: Request) -> Sampler:
    """Return the sampler of the application; nobody watches the worlds of a command, so most have none."""
    state = request.app.state
    if not hasattr(state, "sampler"):
        state.sampler = Sampler(world_of(request))
    sampler = state.sampler
    assert isinstance(sampler, Sampler)
    return sampler


async def _following(world: World, sampler: Sampler, admitted: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Yield what a watcher is shown, until the server ends or lets the watcher in no more."""
    watcher, number = _Watcher(world), 0
    while True:
        sample = await sampler.newer_than(number)
        if not admitted():
            return
        yield b"".join(watcher.events(sampler.samples, sample))
        if sample.last:
            return
        number = sample.number


class _Watcher:
    """What one watcher was told already."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._greeted = False
        self._settled = 0  # decisions up to this number were told, and do not change any more
        self._told: Decision | None = None  # the newest one
        self._revision = 0  # of the log of requests, up to which it was told

    def events(self, samples: Iterable[Sample], sample: Sample) -> list[bytes]:
        """Return what is new at `sample`, the newest one of `samples`."""
        news: list[Json] = []
        if not self._greeted:
            self._greeted = True
            points = [_point(old, old.report) for old in samples if old.report is not None]
            news.append({"type": "history", "period": PERIOD, "points": points})
        news.append(_state(self._world, sample))
        if decisions := self._decisions():
            news.append({"type": "decisions", "decisions": decisions})
        if requests := self._requests():
            news.append({"type": "requests", "requests": requests})
        return [named_event(event) for event in news]

    def _decisions(self) -> list[Json]:
        log = self._world.audit_log
        new = [line for line in log.lines() if line.number > self._settled and line != self._told]
        self._settled = log.settled()
        if not new:
            return []
        self._told = new[-1]
        return [{**dataclasses.asdict(line), "kind": line.kind.value} for line in new]

    def _requests(self) -> list[Json]:
        changed = self._world.metrics.requests.changed_since(self._revision)
        self._revision = max([self._revision, *(request.revision for request in changed)])
        return [_request(request) for request in changed]


def _request(request: Asked) -> Json:
    described = dataclasses.asdict(request)
    del described["revision"]
    return described


def _point(sample: Sample, report: WorldReport) -> Json:
    """Return the sizes at a sample: what a picture of them over time is made of."""
    memory = report.status.memory
    return {
        "at": sample.at,
        "total": report.os.total,
        "available": report.os.available,
        "secure_rss": report.os.rss,
        "unused": memory.granted,
        "recalling": memory.recalling,
        "models": {
            model.name: [model.resident, model.kv, model.scratch]
            for model in report.status.models
            if model.resident or model.kv or model.scratch
        },
    }


def _state(world: World, sample: Sample) -> Json:
    """Return what holds now, as in GET /health, /models and /memory."""
    failure = sample.failure
    state: Json = {
        "type": "state",
        "at": sample.at,
        "status": sample.state.value,
        "error": None if failure is None else {"message": failure.message, "hint": failure.hint},
        "protection": dataclasses.asdict(world.protection),
        "engine": world.engine,
        "restarts": world.restarts,
        "cap": world.cap,
        "counters": dataclasses.asdict(world.counters),
        "budget": _budget(world),
    }
    return state if sample.report is None else {**state, **described_states(world, sample.report)}


def _budget(world: World) -> Json | None:
    try:
        budget = world.budget()
    except FlexServeError:
        return None
    return {"size": budget.size, "bound": budget.bound.value, "reason": budget.reason}
