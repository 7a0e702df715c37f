"""Health, states and memory: what may be polled (it wakes nothing) and POST /recall."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.responses import Response

from flexserve.errors import FlexServeError
from flexserve.normal.api.cards import card_list, description_of
from flexserve.normal.api.errors import from_error
from flexserve.normal.api.schemas import Body
from flexserve.normal.broker import OsView
from flexserve.normal.set_aside import Blamed, SetAsideError, error_of
from flexserve.normal.supervisor import WorldState
from flexserve.normal.world import World, WorldReport
from flexserve.protocol.statuses import CHUNK_STATES, Failure, ModelStatus, NpuStatus

router = APIRouter(tags=["operations"])


class RecallRequest(Body):
    """Body of POST /recall: bytes to take back (null: all that no running request uses)."""

    bytes: Annotated[int, Field(ge=0, le=1 << 53)] | None = None
    deadline_ms: Annotated[float, Field(ge=0, le=60_000)] = 2000


@router.get("/v1/health", include_in_schema=False)
@router.get("/health")
async def health(request: Request) -> Response:
    """Say whether requests can be served now: 200, or 503 with the reason."""
    world = world_of(request)
    body: dict[str, Any] = {
        "status": world.state.value,
        "protection": dataclasses.asdict(world.protection),
        "engine": world.engine,
        "restarts": world.restarts,
        "set_aside": {name: blamed.reason for name, blamed in world.set_aside.items()},
    }
    try:
        world.check()
    except FlexServeError as error:
        refusal = from_error(error)
        if error.code == "engine_still":
            body["status"] = "still"
        elif world.state is WorldState.READY:  # it died just now
            body["status"] = WorldState.RESTARTING.value
        headers = {"Retry-After": str(refusal.retry_after)} if refusal.retry_after else {}
        return JSONResponse({**body, **refusal.body()}, refusal.status, headers)
    return JSONResponse(body)


@router.get("/models")
async def show_states(request: Request) -> Response:
    """Show where every byte is: per model, in total, and as the OS counts it. Sizes in bytes."""
    world = world_of(request)
    report = await world.report()
    # llama-server has cards of the models at this path
    return JSONResponse({**card_list(report.status.models), **described_states(world, report)})


def described_states(world: World, report: WorldReport) -> dict[str, Any]:
    """Return models, memory and what the OS counts, as they stand in JSON."""
    memory = report.status.memory
    body = {
        "protection": dataclasses.asdict(world.protection),
        "models": [
            {
                **_state(model, pinned=model.name in world.pins, blamed=world.set_aside.get(model.name)),
                "options": msgspec.to_builtins(world.options_of(model.name)),
            }
            for model in report.status.models
        ],
        "queued": report.status.queued,
        "running": report.status.running,
        "memory": {
            "chunk": memory.chunk,
            "granted": report.granted,
            "unused": memory.granted,
            "secure": memory.secure,
            "recalling": memory.recalling,
        },
        "os": {
            **described_os(report.os),
            "secure_pid": report.pid,
            "secure_claimed": memory.os_secure,
            "rss_claimed": memory.os_rss,
        },
    }
    if report.status.npu is not None:
        body["npu"] = _npu(report.status.npu)
    return body


@router.post("/recall")
async def recall(request: Request, body: RecallRequest | None = None) -> Response:
    """Take memory back; answer what really came back, by the OS's counters before and after.

    `claimed` is the secure world's account, `measured` what the normal world reads from the OS.
    """
    asked = body or RecallRequest()
    report = await world_of(request).recall(asked.bytes, deadline=asked.deadline_ms / 1000)
    claim = report.claim
    answer = {
        "asked": asked.bytes,
        "returned": claim.returned,
        "protected": claim.protected,
        "elapsed_ms": claim.elapsed,
        "plan": claim.plan,
        "claimed": {"before": claim.os_before, "after": claim.os_after},
        "measured": {
            "freed": report.freed,
            "before": described_os(report.before),
            "after": described_os(report.after),
        },
    }
    return JSONResponse(answer)


def world_of(request: Request) -> World:
    """Return the world that the application of `request` serves."""
    world = request.app.state.world
    assert isinstance(world, World)
    return world


def _state(model: ModelStatus, *, pinned: bool, blamed: Blamed | None) -> dict[str, Any]:
    error: Failure | SetAsideError | None = model.error
    if blamed is not None:
        error = error_of(model.name, blamed)
    return {
        "name": model.name,
        "state": model.state if blamed is None else "set_aside",
        "weights": model.weights,
        "resident": model.resident,
        "resident_fraction": round(model.resident / model.weights, 4) if model.weights else 0.0,
        "kv": model.kv,
        "scratch": model.scratch,
        "heap": model.heap,
        "running": model.running,
        "pinned": pinned,
        "rewarmed": model.rewarmed,
        "rewarmed_for": model.rewarmed_for,
        "context": description_of(model).context,
        "kv_type": description_of(model).kv,
        "draft": description_of(model).draft,
        "leaves_in_ms": model.leaves,
        "gone": model.gone,
        "abilities": None if model.abilities is None else msgspec.to_builtins(model.abilities),
        "chunks": [[CHUNK_STATES[state], count] for state, count in model.chunks],
        "error": None
        if error is None
        else {"code": error.code, "message": error.message, "hint": error.hint},
    }


def _npu(npu: NpuStatus) -> dict[str, Any]:
    return {
        "state": npu.state,
        "switches": npu.switches,
        "held_ms": npu.held,
        "jobs": npu.jobs,
        "products": npu.products,
        "fallbacks": npu.fallbacks,
        "lost": npu.lost,
    }


def described_os(view: OsView) -> dict[str, Any]:
    """Return what the OS counts, as it stands in JSON."""
    counted = {"total": view.total, "available": view.available, "stall": view.stall, "secure_rss": view.rss}
    return {**counted, "guest": True} if view.guest else counted
