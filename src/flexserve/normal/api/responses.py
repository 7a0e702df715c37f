"""POST /v1/responses: OpenAI's Responses API. Nothing is stored: a request has its whole conversation."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, ClassVar, Literal, Self

import msgspec
from fastapi import APIRouter, Request
from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from flexserve.normal.api.answering import GenerationRequest, Json, counted, model_of, respond
from flexserve.normal.api.media import refuse_media
from flexserve.normal.api.pace import Pace
from flexserve.normal.api.parts import Parts
from flexserve.normal.api.prompts import Text
from flexserve.normal.api.reasoning import Effort, ReasoningFields
from flexserve.normal.api.responses_form import ResponseForm
from flexserve.normal.api.sampling_fields import SamplingFields, agreed
from flexserve.normal.api.schemas import Body, ExactBody, ModelRequest, Tokens, refuse_unsupported
from flexserve.normal.api.tools import (
    Choice,
    Function,
    FunctionName,
    JsonFormat,
    Label,
    NamedChoice,
    PlainFormat,
    Tool,
    offered,
    refuse_kinds,
    schema_of,
    schemas_of,
)
from flexserve.protocol.bounds import MAX_MESSAGES, MAX_SCHEMA, MAX_TEXT, MAX_TOOL_CALLS, MAX_TOP_LOGPROBS
from flexserve.protocol.prompts import ChatMessage, ChatPrompt, ToolCall
from flexserve.protocol.requests import Terms
from flexserve.protocol.sampling import Sampling

router = APIRouter(tags=["generation"])

# Parameters not implemented, and the values with which they change nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "access_programs": (None, []),
    "background": (None, False),
    "background_options": (None,),
    "conversation": (None,),
    "image": (None,),
    "max_tool_calls": (None,),
    "prompt": (None,),
    "truncation": (None, "disabled"),
    "context_management": (None, []),
}

NOT_IN_REASONING: dict[str, tuple[Any, ...]] = {"context": (None, "auto"), "mode": (None, "standard")}

_LOGPROBS = "message.output_text.logprobs"


class Piece(Body):
    """A piece of text of a message. Images, audio and files are refused."""

    type: Literal["input_text", "output_text", "text"]
    text: Text


class MessageItem(Body):
    """One message of a conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Piece], Field(max_length=MAX_MESSAGES)]


class CallItem(Body):
    """A call that the model made earlier."""

    type: Literal["function_call"]
    call_id: Label
    name: FunctionName
    arguments: Annotated[str, StringConstraints(max_length=MAX_TEXT)]


class OutputItem(Body):
    """What a call brought."""

    type: Literal["function_call_output"]
    call_id: Label
    output: Text | Annotated[list[Piece], Field(max_length=MAX_MESSAGES)]


class ThoughtPiece(Body):
    """A piece of a thought."""

    type: Literal["reasoning_text", "summary_text"]
    text: Text


class ReasoningItem(Body):
    """What the model thought earlier. Its template decides whether the model sees it again."""

    type: Literal["reasoning"]
    content: Annotated[list[ThoughtPiece], Field(max_length=MAX_MESSAGES)] | None = None


Item = Annotated[MessageItem | CallItem | OutputItem | ReasoningItem, Field(union_mode="left_to_right")]


class FunctionTool(Body):
    """A function that the model may call. Tools that OpenAI's own servers run are refused."""

    type: Literal["function"]
    name: FunctionName
    description: Annotated[str, StringConstraints(max_length=MAX_SCHEMA)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_a_function(cls, tool: Any) -> Any:
        return refuse_kinds(tool, "function")

    def tool(self) -> Tool:
        """Return it as the chat API has it."""
        given = self.model_dump(exclude_unset=True, exclude={"type"})
        return Tool(type="function", function=Function(**given))


class FunctionChoice(Body):
    """The one function that has to be called."""

    type: Literal["function"]
    name: FunctionName


class SchemaFormat(Body):
    """An answer that follows a JSON schema."""

    type: Literal["json_schema"]
    name: Annotated[str, StringConstraints(max_length=64)] | None = None
    described: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextOptions(Body):
    """What form the answer is to have."""

    format: Annotated[PlainFormat | JsonFormat | SchemaFormat, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None

    def schema_text(self) -> str | None:
        """Return the JSON schema that the answer has to follow."""
        if isinstance(self.format, SchemaFormat):
            return schema_of(JsonFormat(type="json_object", schema=self.format.described))
        return schema_of(self.format)


class Reasoning(Body):
    """How hard the model thinks. A summary of its thoughts is not made: they come whole."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, reasoning: Any) -> Any:
        refuse_unsupported(reasoning, NOT_IN_REASONING)
        return reasoning


class ResponseStreamOptions(ExactBody):
    """What a stream should contain besides the answer: nothing, whatever its padding."""

    include_obfuscation: bool | None = None


class ResponsesRequest(SamplingFields, ModelRequest):
    """Body of POST /v1/responses. It takes llama-server's fields of sampling, too."""

    others: ClassVar[Collection[str]] = (*UNSUPPORTED, "previous_response_id")

    input: Text | Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: Text | None = None
    max_output_tokens: Tokens | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    include: list[str] | None = None
    stream: bool | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOL_CALLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    metadata: dict[str, str] | None = None
    reasoning: Reasoning | None = None
    stream_options: ResponseStreamOptions | None = None
    return_progress: bool | None = None  # of llama-server, as the next
    timings_per_token: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, body: Any) -> Any:
        refuse_media(body, "input")
        refuse_unsupported(body, UNSUPPORTED)
        if isinstance(body, dict) and body.get("previous_response_id") is not None:
            raise PydanticCustomError(
                "unsupported",
                "This server stores no responses. Send the whole conversation as input, "
                "without previous_response_id.",
                {"param": "previous_response_id"},
            )
        return body

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self.prompt()
        self.sampling()
        return self

    @property
    def with_logprobs(self) -> bool:
        """Whether log-probabilities are wanted."""
        return bool(self.top_logprobs) or _LOGPROBS in (self.include or [])

    @property
    def most_calls(self) -> int:
        """How many calls the answer may have."""
        if not self.tools or self.tool_choice == "none":
            return 0
        return 1 if self.parallel_tool_calls is False else MAX_TOOL_CALLS

    def prompt(self) -> ChatPrompt:
        """Return the conversation. Raises PydanticCustomError for a choice that the tools do not allow."""
        turns = [ChatMessage("system", self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            turns.append(ChatMessage("user", self.input))
        else:
            turns += _turns(self.input)
        if not turns:
            raise PydanticCustomError("input", "It has no messages", {"param": "input"})
        choice: Choice | None = None
        if isinstance(self.tool_choice, FunctionChoice):
            function = {"name": self.tool_choice.name}
            choice = NamedChoice.model_validate({"type": "function", "function": function})
        else:
            choice = self.tool_choice
        effort = self.reasoning.effort if self.reasoning else None
        reasoning = ReasoningFields.model_validate({"reasoning_effort": effort}).reasoning()
        several = self.most_calls > 1 and not isinstance(choice, NamedChoice)
        return ChatPrompt(turns, *offered(self.offers, choice), several=several, **reasoning)

    @property
    def offers(self) -> list[Tool]:
        """The tools as the chat API has them."""
        return [tool.tool() for tool in self.tools or []]

    def terms(self, key: bytes) -> Terms:
        """Return the terms of a request that came with bearer `key`."""
        return msgspec.structs.replace(
            super().terms(key), progress=bool(self.return_progress and self.stream)
        )

    def sampling(self, **more: Any) -> Sampling:
        """Return how to sample."""
        logprobs = (self.top_logprobs or 0) if self.with_logprobs else None
        return super().sampling(logprobs=logprobs, **more)

    def limits(self) -> dict[str, int | None]:
        """Return the limit of the answer by the names that it has."""
        return super().limits() | {"max_output_tokens": self.max_output_tokens}

    def _schema(self) -> str | None:
        said = self.text.schema_text() if self.text is not None else None
        return agreed(**{"text.format": said, "json_schema": super()._schema()})

    def echo(self) -> Json:
        """Return what a response repeats of its request, with what is meant where nothing was said."""
        said = self.model_dump(
            include={"instructions", "max_output_tokens", "temperature", "top_p", "top_logprobs", "user"}
        )
        usual = Sampling()
        return {
            **said,
            "temperature": usual.temperature if self.temperature is None else self.temperature,
            "top_p": usual.top_p if self.top_p is None else self.top_p,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "tools": [tool.model_dump() for tool in self.tools or []],
            "tool_choice": self.tool_choice.model_dump()
            if isinstance(self.tool_choice, FunctionChoice)
            else self.tool_choice or "auto",
            "text": self.text.model_dump(by_alias=True, exclude_none=True)
            if self.text
            else {"format": {"type": "text"}},
            "reasoning": {"effort": self.reasoning.effort if self.reasoning else None, "summary": None},
            "truncation": "disabled",
            "previous_response_id": None,
            "store": False,
            "background": False,
        }


def _turns(items: list[Any]) -> list[ChatMessage]:
    """Return the messages of a conversation: a thought, what follows it and its calls are of one turn."""
    turns: list[ChatMessage] = []
    thought = ""
    for item in items:
        match item:
            case MessageItem():
                role = "system" if item.role == "developer" else item.role
                own = thought if role == "assistant" else ""
                turns.append(ChatMessage(role, _text(item.content), thought=own))
                thought = ""
            case CallItem():
                call = ToolCall(item.call_id, item.name, item.arguments)
                if turns and turns[-1].role == "assistant" and not thought:
                    last = turns.pop()
                    turns.append(msgspec.structs.replace(last, tool_calls=[*last.tool_calls, call]))
                else:
                    turns.append(ChatMessage("assistant", "", [call], thought=thought))
                thought = ""
            case ReasoningItem():
                thought = "".join(piece.text for piece in item.content or [])
            case OutputItem():
                turns.append(ChatMessage("tool", _text(item.output), tool_call_id=item.call_id))
    return turns


def _text(content: str | list[Piece]) -> str:
    return content if isinstance(content, str) else "".join(piece.text for piece in content)


@router.post("/responses", include_in_schema=False)
@router.post("/v1/responses")
async def responses(body: ResponsesRequest, request: Request) -> Response:
    """Answer a conversation, as items."""
    model = await model_of(request.app.state.world, body.model)
    parts = Parts(body.most_calls, schemas_of(body.offers))
    form = ResponseForm(model, body.echo(), parts, with_logprobs=body.with_logprobs)
    form.pace = Pace(progress=bool(body.return_progress), per_token=bool(body.timings_per_token))
    terms = body.terms(request.state.key)
    asked = GenerationRequest(model, body.prompt(), body.sampling(), terms, stream=bool(body.stream))
    return await respond(request, asked, form)


@router.post("/responses/input_tokens", include_in_schema=False)
@router.post("/v1/responses/input_tokens")
async def count_tokens(body: ResponsesRequest, request: Request) -> Response:
    """Count the tokens of a conversation as the model would get it. Nothing is computed."""
    return await counted(request, body.model, body.prompt())
