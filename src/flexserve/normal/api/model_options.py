"""How one model is served, where that differs from the server's own settings: PUT /models/NAME/options."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from flexserve.normal.api.operations import world_of
from flexserve.normal.model_options import parse_context
from flexserve.protocol.model_options import MAX_CONTEXT, KvType, ModelOptions

router = APIRouter(tags=["operations"])


def _tokens(value: Any) -> Any:
    """Return what a text like "32k" means; what is no text goes on to the type check."""
    if not isinstance(value, str):
        return value
    try:
        return parse_context(value)
    except ValueError as error:
        raise PydanticCustomError("context", "{reason}", {"reason": str(error)}) from None


class OptionsRequest(BaseModel):
    """Body of PUT /models/NAME/options: all options of a model; null: as the server's settings have it.

    `context`: tokens as a number or like "32k", or "model": as many as it was trained for. `draft`: a smaller
    model that guesses its next tokens.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    context: Annotated[
        Annotated[int, Field(ge=1, le=MAX_CONTEXT)] | Literal["model"] | None,
        BeforeValidator(_tokens, json_schema_input_type=int | str | None),
    ] = None
    kv: KvType | None = None
    shift: bool | None = None
    draft: Annotated[str, Field(min_length=1, max_length=128)] | None = None


@router.put("/models/{name:path}/options")
async def set_options(name: str, body: OptionsRequest, request: Request) -> Response:
    """Serve a model in this way from when it is opened next, and no other way than usual beside that."""
    world = world_of(request)
    await world.set_options(name, ModelOptions(**body.model_dump()))
    return JSONResponse({"model": name, "options": msgspec.to_builtins(world.options_of(name))})
