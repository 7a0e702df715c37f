"""Memory between programs: what is granted and why, a cap, pins, and room for others on request."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from flexserve.errors import CallerError
from flexserve.normal.api.operations import described_os, world_of
from flexserve.protocol.bounds import MAX_PINS
from flexserve.units import parse_size

router = APIRouter(prefix="/memory", tags=["memory"])
_MAX_SIZE_TEXT = 32  # characters of a size


def _bytes(value: Any) -> Any:
    """Return the bytes that a text like "512MiB" stands for; what is no text goes on to the type check."""
    if not isinstance(value, str):
        return value
    try:
        return parse_size(value[:_MAX_SIZE_TEXT])
    except CallerError as error:
        raise PydanticCustomError("size", "{reason}", {"reason": str(error)}) from None


Bytes = Annotated[int, BeforeValidator(_bytes, json_schema_input_type=int | str), Field(ge=0, le=1 << 53)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class NeedRequest(_Body):
    """Body of POST /memory/need: a size, as bytes or like "512MiB", by when, and for how long."""

    size: Bytes
    deadline_ms: Annotated[float, Field(ge=0, le=60_000)] = 2000
    hold_seconds: Annotated[float, Field(ge=0, le=3600)] = 30


class CapRequest(_Body):
    """Body of PUT /memory/cap: the most that may be granted; null: no cap."""

    size: Bytes | None


ModelName = Annotated[str, Field(min_length=1, max_length=128)]


class UnloadRequest(_Body):
    """Body of POST /memory/unload."""

    model: ModelName


class PinsRequest(_Body):
    """Body of PUT /memory/pins: the models to pin, all of them."""

    models: Annotated[list[ModelName], Field(max_length=MAX_PINS)]


@router.get("")
async def show(request: Request) -> Response:
    """Show what is granted, what may be and why not more, and the sums since the start. Sizes in bytes."""
    world = world_of(request)
    budget = world.budget()
    return JSONResponse(
        {
            "granted": world.granted,
            "cap": world.cap,
            "budget": {"size": budget.size, "bound": budget.bound.value, "reason": budget.reason},
            "pins": world.pins,
            "counters": dataclasses.asdict(world.counters),
        }
    )


@router.post("/need")
async def need(request: Request, body: NeedRequest) -> Response:
    """Have memory available for the asking program, and keep it from FlexServe for a time.

    `freed` is what the secure process shrank by, as the OS counts it; `available` what the OS could hand
    out before and after. Less than `asked` may be available: what running requests use stays theirs.
    """
    room = await world_of(request).make_room(
        body.size, deadline=body.deadline_ms / 1000, hold=body.hold_seconds
    )
    answer: dict[str, Any] = {
        "asked": room.asked,
        "satisfied": room.after.available >= room.asked,
        "freed": room.freed,
        "elapsed_ms": room.recall.claim.elapsed if room.recall else 0.0,
        "plan": room.recall.claim.plan if room.recall else [],
        "hold_seconds": room.hold_seconds,
        "before": described_os(room.before),
        "after": described_os(room.after),
    }
    return JSONResponse(answer)


@router.put("/cap")
async def set_cap(request: Request, body: CapRequest) -> Response:
    """Set the most that may be granted; null: no cap. What is beyond it is recalled."""
    world = world_of(request)
    world.set_cap(body.size)
    return JSONResponse({"cap": world.cap, "granted": world.granted})


@router.put("/pins")
async def set_pins(request: Request, body: PinsRequest) -> Response:
    """Pin these models and no others: their weights go only when nothing else can meet a demand."""
    world = world_of(request)
    await world.set_pins(body.models)
    return JSONResponse({"pins": world.pins})


@router.post("/unload")
async def unload(request: Request, body: UnloadRequest) -> Response:
    """Let a model go: its memory goes back as soon as no request uses it."""
    await world_of(request).warm(body.model, 0)
    return JSONResponse({"model": body.model})


@router.get("/decisions")
async def decisions(request: Request, after: Annotated[int, Query(ge=0, le=1 << 53)] = 0) -> Response:
    """Show the last decisions with their reasons, oldest first; those numbered above `after`.

    Lines up to number `settled` do not change any more; a later one may still grow.
    """
    audit_log = world_of(request).audit_log
    lines = [
        {**dataclasses.asdict(line), "kind": line.kind.value}
        for line in audit_log.lines()
        if line.number > after
    ]
    return JSONResponse({"settled": audit_log.settled(), "decisions": lines})
