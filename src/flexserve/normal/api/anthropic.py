"""Anthropic's API: POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, ClassVar, Literal, Self

from fastapi import APIRouter, Request
from pydantic import Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from flexserve.normal.api.answering import (
    GenerationRequest,
    Json,
    counted,
    model_of,
    respond,
)
from flexserve.normal.api.anthropic_form import MessageForm
from flexserve.normal.api.errors import HttpError
from flexserve.normal.api.media import refuse_media
from flexserve.normal.api.parts import Parts
from flexserve.normal.api.prompts import Text
from flexserve.normal.api.reasoning import Budget, Effort, ReasoningFields
from flexserve.normal.api.sampling_fields import Stop
from flexserve.normal.api.schemas import Body, ModelRequest, Tokens, refuse_unsupported
from flexserve.normal.api.tools import (
    Choice,
    Function,
    FunctionName,
    Label,
    NamedChoice,
    SchemaFormat,
    Tool,
    compact,
    offered,
    refuse_kinds,
    schema_of,
    schemas_of,
)
from flexserve.protocol.bounds import MAX_MESSAGES, MAX_SCHEMA, MAX_STOPS, MAX_TOOL_CALLS
from flexserve.protocol.prompts import ChatMessage, ChatPrompt, ToolCall
from flexserve.protocol.sampling import MAX_TOKEN, Sampling

router = APIRouter(tags=["anthropic"])

# Parameters not implemented, and the values with which they change nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "container": (None,),
    "mcp_servers": (None, []),
    "context_management": (None,),
    "output_format": (None,),
}

NOT_IN_TOOLS: dict[str, tuple[Any, ...]] = {"input_examples": (None, []), "defer_loading": (None, False)}

# What changes no answer here: where and for whom Anthropic computes, and what it keeps.
IGNORED = (
    *("service_tier", "inference_geo", "speed", "cache_control", "diagnostics", "user_profile_id"),
    *("workspace_id", "betas"),
)

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(error: HttpError) -> Json:
    """Return `error` in Anthropic's form."""
    kind = _ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


ERROR_FORMS = {"/v1/messages": error_body}


class TextBlock(Body):
    """A piece of text."""

    type: Literal["text"]
    text: Text


class ToolUse(Body):
    """A call that the model made earlier."""

    type: Literal["tool_use"]
    id: Label
    name: FunctionName
    input: dict[str, Any]


class ToolResult(Body):
    """What a call brought."""

    type: Literal["tool_result"]
    tool_use_id: Label
    content: Text | Annotated[list[TextBlock], Field(max_length=MAX_MESSAGES)] | None = None
    is_error: bool | None = None

    def said(self) -> str:
        """Return it as the model is told: templates have no other place for a failure than the text."""
        return f"Error: {_text(self.content)}" if self.is_error else _text(self.content)


class Thought(Body):
    """What the model thought earlier. Its template decides whether the model sees it again."""

    type: Literal["thinking"]
    thinking: Text


class HiddenThought(Body):
    """What a model of Anthropic's thought: nobody else can read it, and it is left out."""

    type: Literal["redacted_thinking"]


Block = Annotated[TextBlock | ToolUse | ToolResult | Thought | HiddenThought, Field(discriminator="type")]


class Turn(Body):
    """One message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: Text | Annotated[list[Block], Field(max_length=MAX_MESSAGES)]

    @model_validator(mode="after")
    def _blocks_fit_the_role(self) -> Self:
        blocks = self.content if isinstance(self.content, list) else []
        for block in blocks:
            if isinstance(block, ToolUse | Thought | HiddenThought) and self.role != "assistant":
                raise PydanticCustomError("turn", "Only an assistant has tool_use and thinking")
            if isinstance(block, ToolResult) and self.role != "user":
                raise PydanticCustomError("turn", "Only a user has tool_result")
        return self

    def messages(self) -> list[ChatMessage]:
        """Return it as it crosses to the secure world: results of tools are messages of their own."""
        if isinstance(self.content, str):
            return [ChatMessage(self.role, self.content)]
        results = [
            ChatMessage("tool", block.said(), tool_call_id=block.tool_use_id)
            for block in self.content
            if isinstance(block, ToolResult)
        ]
        text = "".join(block.text for block in self.content if isinstance(block, TextBlock))
        calls = [
            ToolCall(block.id, block.name, compact(block.input, "messages"))
            for block in self.content
            if isinstance(block, ToolUse)
        ]
        thought = "".join(block.thinking for block in self.content if isinstance(block, Thought))
        if text or calls or thought or not results:
            results.append(ChatMessage(self.role, text, calls, thought=thought))
        return results


class AnthropicTool(Body):
    """A tool that the model may call. Tools that Anthropic's own servers run are refused."""

    name: FunctionName
    description: Annotated[str, StringConstraints(max_length=MAX_SCHEMA)] | None = None
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_the_clients(cls, tool: Any) -> Any:
        if isinstance(tool, dict) and tool.get("type") is not None:
            refuse_kinds(tool, "custom")
        refuse_unsupported(tool, NOT_IN_TOOLS)
        return tool

    def tool(self) -> Tool:
        """Return it as OpenAI's API has it."""
        given = {"name": self.name, "parameters": self.input_schema}
        if self.description is not None:
            given["description"] = self.description
        return Tool(type="function", function=Function.model_validate(given))


class AnthropicChoice(Body):
    """Whether the model has to call a tool."""

    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool | None = None

    def choice(self) -> Choice:
        """Return it as OpenAI's API has it. Raises PydanticCustomError for a tool without a name."""
        if self.type == "tool":
            if self.name is None:
                raise PydanticCustomError("choice", "It names no tool", {"param": "tool_choice.name"})
            return NamedChoice.model_validate({"type": "function", "function": {"name": self.name}})
        words: dict[str, Choice] = {"auto": "auto", "any": "required", "none": "none"}
        return words[self.type]


class Thinking(Body):
    """Whether the model thinks before it answers, for how many tokens at most, and whether that is told."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Budget | None = None
    display: Literal["summarized", "omitted"] | None = None  # a thought comes whole, or not at all


class OutputConfig(Body):
    """How hard the model thinks, and which schema its answer follows."""

    effort: Effort | None = None
    format: SchemaFormat | None = None


class Metadata(Body):
    """Whose request it is."""

    user_id: Annotated[str, StringConstraints(max_length=1024)] | None = None


class ConversationRequest(ModelRequest):
    """What both routes take: body of POST /v1/messages/count_tokens."""

    others: ClassVar[Collection[str]] = (*UNSUPPORTED, *IGNORED)

    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: Text | Annotated[list[TextBlock], Field(max_length=MAX_MESSAGES)] | None = None
    tools: Annotated[list[AnthropicTool], Field(max_length=MAX_TOOL_CALLS)] | None = None
    tool_choice: AnthropicChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, body: Any) -> Any:
        refuse_media(body, "messages", "system")
        refuse_unsupported(body, UNSUPPORTED)
        return body

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self.prompt()
        return self

    def prompt(self) -> ChatPrompt:
        """Return the conversation. Raises PydanticCustomError for a choice that the tools do not allow."""
        system = _text(self.system)
        turns = [ChatMessage("system", system)] if system else []
        turns += [message for turn in self.messages for message in turn.messages()]
        choice = None if self.tool_choice is None else self.tool_choice.choice()
        several = self.most_calls > 1 and not isinstance(choice, NamedChoice)
        return ChatPrompt(turns, *offered(self.offers, choice), several=several, **self._reasoning())

    @property
    def most_calls(self) -> int:
        """How many calls the answer may have."""
        if not self.tools:
            return 0
        return 1 if self.tool_choice and self.tool_choice.disable_parallel_tool_use else MAX_TOOL_CALLS

    @property
    def offers(self) -> list[Tool]:
        """The tools as OpenAI's API has them."""
        return [tool.tool() for tool in self.tools or []]

    def _reasoning(self) -> dict[str, Any]:
        thinking = self.thinking or Thinking(type="adaptive")
        fields = {
            "enable_thinking": {"enabled": True, "disabled": False}.get(thinking.type),
            "reasoning_budget_tokens": thinking.budget_tokens,
            "reasoning_effort": self.output_config.effort if self.output_config else None,
        }
        return ReasoningFields.model_validate(fields).reasoning()


class MessagesRequest(ConversationRequest):
    """Body of POST /v1/messages."""

    max_tokens: Tokens
    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=MAX_TOKEN)] | None = None
    stop_sequences: Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    metadata: Metadata | None = None

    def sampling(self) -> Sampling:
        """Return how to sample."""
        given = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        schema = schema_of(self.output_config.format) if self.output_config else None
        return Sampling(max_tokens=self.max_tokens, stop=self.stop_sequences or [], schema=schema, **chosen)

    @model_validator(mode="after")
    def _has_a_user(self) -> Self:
        if self.metadata is not None and self.user is None:
            self.user = self.metadata.user_id
        return self


@router.post("/v1/messages")
async def messages(body: MessagesRequest, request: Request) -> Response:
    """Answer a conversation, in Anthropic's form."""
    model = await model_of(request.app.state.world, body.model)
    parts = Parts(body.most_calls, schemas_of(body.offers))
    omits = body.thinking is not None and body.thinking.display == "omitted"
    form = MessageForm(model, body.stop_sequences or [], error_body, parts, omits_thoughts=omits)
    terms = body.terms(request.state.key)
    asked = GenerationRequest(model, body.prompt(), body.sampling(), terms, stream=bool(body.stream))
    return await respond(request, asked, form)


@router.post("/v1/messages/count_tokens")
async def count_tokens(body: ConversationRequest, request: Request) -> Response:
    """Count the tokens of a conversation as the model would get it. Nothing is computed."""
    return await counted(request, body.model, body.prompt())


def _text(content: str | list[TextBlock] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(block.text for block in content)
