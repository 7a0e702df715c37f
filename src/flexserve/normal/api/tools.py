"""Tools that clients offer, calls that they report back, and the forms that answers are to have."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from flexserve.protocol.bounds import MAX_SCHEMA, MAX_TEXT, MAX_TOOL_CALLS
from flexserve.protocol.prompts import ToolCall

FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
Label = Annotated[str, StringConstraints(max_length=128)]
_STRICT = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


def refuse_kinds(tool: Any, known: str) -> Any:
    """Return `tool`. Raises PydanticCustomError for one of another kind than `known`: a server's own."""
    kind = tool.get("type", known) if isinstance(tool, dict) else known
    if isinstance(kind, str) and kind != known:
        raise PydanticCustomError(
            "unsupported",
            "Tools of type {kind} are not supported: this server carries out none. Describe a function "
            "that your program carries out.",
            {"kind": repr(kind[:64])},
        )
    return tool


class Function(BaseModel):
    """What a tool is called, does and takes: `parameters` is a JSON schema."""

    model_config = _STRICT
    name: FunctionName
    description: Annotated[str, StringConstraints(max_length=MAX_SCHEMA)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A function that the model may call."""

    model_config = _STRICT
    type: Literal["function"]
    function: Function

    @model_validator(mode="before")
    @classmethod
    def _is_a_function(cls, tool: Any) -> Any:
        return refuse_kinds(tool, "function")


class _Name(BaseModel):
    model_config = _STRICT
    name: FunctionName


class NamedChoice(BaseModel):
    """The one function that has to be called."""

    model_config = _STRICT
    type: Literal["function"]
    function: _Name


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOL_CALLS)]
Choice = Literal["none", "auto", "required"] | NamedChoice


class _Arguments(BaseModel):
    model_config = _STRICT
    name: FunctionName
    arguments: Annotated[str, StringConstraints(max_length=MAX_TEXT)]


class MadeCall(BaseModel):
    """A call that the model made earlier in the conversation."""

    model_config = _STRICT
    id: Label
    type: Literal["function"] = "function"
    function: _Arguments

    def message(self) -> ToolCall:
        """Return it as it crosses to the secure world."""
        return ToolCall(self.id, self.function.name, self.function.arguments)


class PlainFormat(BaseModel):
    """An answer of any form."""

    model_config = _STRICT
    type: Literal["text"]


# Of the classes below, the field "schema" has the name of a method of BaseModel, so it is known by
# another in Python.


class JsonFormat(BaseModel):
    """An answer that is a JSON object; with llama.cpp's `schema`, one that follows it."""

    model_config = _STRICT
    type: Literal["json_object"]
    described: dict[str, Any] | None = Field(None, alias="schema")


class NamedSchema(BaseModel):
    """A JSON schema, and what OpenAI says beside it. An answer follows it whatever `strict` says."""

    model_config = _STRICT
    name: Annotated[str, StringConstraints(max_length=64)] | None = None
    described: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class SchemaFormat(BaseModel):
    """An answer that follows a JSON schema: OpenAI's `json_schema.schema`, or llama.cpp's `schema`."""

    model_config = _STRICT
    type: Literal["json_schema"]
    json_schema: NamedSchema | None = None
    described: dict[str, Any] | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _has_one_schema(self) -> Self:
        if (self.json_schema is None) == (self.described is None):
            raise PydanticCustomError(
                "schema", "Give the schema once, as json_schema.schema", {"param": "response_format"}
            )
        return self


Format = Annotated[PlainFormat | JsonFormat | SchemaFormat, Field(discriminator="type")]


def schema_of(form: PlainFormat | JsonFormat | SchemaFormat | None) -> str | None:
    """Return the JSON schema that an answer has to follow, as text; "{}" is any object."""
    if form is None or isinstance(form, PlainFormat):
        return None
    named = form.json_schema if isinstance(form, SchemaFormat) else None
    described = named.described if named else form.described
    return compact(described or {}, "response_format")


def offered(tools: list[Tool] | None, choice: Choice | None) -> tuple[str | None, list[str]]:
    """Return the tools as text (None: none are offered) and the names of those of which one must be called.

    Raises PydanticCustomError for a choice that the tools do not allow.
    """
    names = [tool.function.name for tool in tools or []]
    if isinstance(choice, NamedChoice):
        if choice.function.name not in names:
            raise PydanticCustomError(
                "choice", "There is no tool of that name", {"param": "tool_choice.function.name"}
            )
        must_call = [choice.function.name]
    else:
        must_call = names if choice == "required" else []
        if choice == "required" and not names:
            raise PydanticCustomError("choice", "There are no tools to call", {"param": "tool_choice"})
    if not tools or choice == "none":
        return None, []
    return compact([tool.model_dump(exclude_unset=True) for tool in tools], "tools"), must_call


def schemas_of(tools: list[Tool] | None) -> dict[str, dict[str, Any]]:
    """Return the schemas of each tool's arguments, by their names."""
    found = {}
    for tool in tools or []:
        properties = (tool.function.parameters or {}).get("properties")
        found[tool.function.name] = properties if isinstance(properties, dict) else {}
    return found


def compact(value: Any, param: str) -> str:
    """Return `value` as JSON. Raises PydanticCustomError when that is none, or too much of it."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        raise PydanticCustomError("json", "It is not JSON, or nests too deeply", {"param": param}) from None
    if len(text) > MAX_SCHEMA:
        raise PydanticCustomError(
            "long", "It has more than {most} characters of JSON", {"param": param, "most": MAX_SCHEMA}
        )
    return text
