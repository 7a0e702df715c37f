"""The bodies that clients send, checked field by field.

Bounds are those of the world protocol. A field that this server does not implement is refused by name,
unless no answer depends on it (normal.api.fields).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import msgspec
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from flexserve.normal.api.fields import names_of, refuse_others
from flexserve.normal.api.keys import owner_of
from flexserve.normal.api.media import refuse_media
from flexserve.normal.api.pace import Pace
from flexserve.normal.api.prompts import Prompts, Text, prompts_of
from flexserve.normal.api.reasoning import ReasoningFields
from flexserve.normal.api.sampling_fields import SamplingFields, agreed
from flexserve.normal.api.tools import Choice, Label, MadeCall, NamedChoice, Tools, offered
from flexserve.protocol.bounds import MAX_MESSAGES, MAX_TOOL_CALLS, MAX_TOP_LOGPROBS
from flexserve.protocol.prompts import ChatMessage, ChatPrompt, InfillPrompt, Prompt, TextPrompt
from flexserve.protocol.requests import Terms
from flexserve.protocol.sampling import MAX_ANSWER_TOKENS, Sampling
from flexserve.units import parse_duration

MAX_ANSWERS = 128  # of one request

# OpenAI's default for /v1/completions; /v1/chat/completions has none.
DEFAULT_COMPLETION_TOKENS = 16

Tokens = Annotated[int, Field(ge=1, le=MAX_ANSWER_TOKENS)]
_MAX_DURATION_TEXT = 32  # characters


def _as_stored(name: str) -> str:
    """Return the name that `flexserve pull` gives what ollama calls `name`: "llama", or "llama-1b".

    No model of the store has a colon in its name.
    """
    return name.removesuffix(":latest").replace(":", "-")


ModelName = Annotated[str, StringConstraints(min_length=1, max_length=128), AfterValidator(_as_stored)]


class Body(BaseModel):
    """A body, or a part of one."""

    # Strict: "5" is no number and true is no count. NaN is no temperature.
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class ExactBody(Body):
    """A part of a body in which nothing unknown is ignored."""

    model_config = ConfigDict(extra="forbid")


class TextPart(Body):
    """A piece of a message's content. Images, sounds and files are refused."""

    type: Literal["text"]
    text: Text


# What OpenAI's and others' messages may have beside their text, and would be lost here.
NOT_IN_TURNS = ("audio", "function_call", "refusal")


class Turn(Body):
    """One message of a conversation. Only an assistant that calls tools may have nothing to say."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    tool_calls: Annotated[list[MadeCall], Field(max_length=MAX_TOOL_CALLS)] | None = None
    tool_call_id: Label | None = None
    name: Label | None = None
    reasoning_content: Text | None = Field(  # what the assistant thought
        None, validation_alias=AliasChoices("reasoning_content", "reasoning")
    )

    @model_validator(mode="before")
    @classmethod
    def _has_no_more(cls, turn: Any) -> Any:
        for name in NOT_IN_TURNS:
            if isinstance(turn, dict) and turn.get(name):
                raise PydanticCustomError("turn", "A message's {name} is not supported", {"name": name})
        return turn

    @field_validator("content", mode="before")
    @classmethod
    def _is_text(cls, content: Any) -> Any:
        if content is None or isinstance(content, str):
            return content
        if not isinstance(content, list):
            raise PydanticCustomError("content", "The content is a text or a list of texts")
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text":
                raise PydanticCustomError("content", 'A part of the content is no {{"type": "text"}}')
        return content

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise PydanticCustomError("turn", "Only an assistant has tool_calls")
        if self.reasoning_content and self.role != "assistant":
            raise PydanticCustomError("turn", "Only an assistant has reasoning_content")
        if self.content is None and not self.tool_calls and not self.reasoning_content:
            raise PydanticCustomError("turn", "A message needs content")
        if self.role == "tool" and not self.tool_call_id:
            raise PydanticCustomError("turn", "A tool's message needs a tool_call_id")
        return self

    def message(self) -> ChatMessage:
        """Return it as it crosses to the secure world: "developer" is "system" to chat templates."""
        role = "system" if self.role == "developer" else self.role
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "\n".join(part.text for part in parts)
        calls = [call.message() for call in self.tool_calls or []]
        return ChatMessage(
            role, text, calls, self.tool_call_id or "", self.name or "", self.reasoning_content or ""
        )


def refuse_unsupported(body: Any, unsupported: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise PydanticCustomError for a parameter that is not implemented and has not a harmless value."""
    for name, harmless in unsupported.items():
        if isinstance(body, dict) and name in body and body[name] not in harmless:
            raise PydanticCustomError(
                "unsupported", "This server does not support {param}. Leave it out.", {"param": name}
            )


class StreamOptions(ExactBody):
    """What a stream should contain besides the answer. Padding of its chunks is none of it."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Extension(ExactBody):
    """What FlexServe understands beyond OpenAI's API: field `flexserve` of a body.

    `next_model` is the model that will be asked next; its weights are brought in meanwhile. Of
    requests that wait, those with higher `priority` go first. Without `reuse` the whole prompt is
    computed anew: slower, and to the last bit what a server answers that has just started.
    """

    next_model: ModelName | None = None
    priority: Annotated[int, Field(ge=-10, le=10)] = 0
    reuse: bool = True


def _seconds(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_duration(value[:_MAX_DURATION_TEXT])
    except ValueError as error:
        raise PydanticCustomError("duration", "{reason}", {"reason": str(error)}) from None


def _check_seconds(value: float) -> float:
    if value < 0 and value != -1:
        raise PydanticCustomError("duration", "Give -1 (for ever), or 0 seconds or more")
    return value


KeepAlive = Annotated[
    float,
    BeforeValidator(_seconds, json_schema_input_type=str | float),
    Field(ge=-1, le=1e9),
    AfterValidator(_check_seconds),
]


class ModelRequest(Body):
    """What all requests to a model have in common. Without a name it is the only model's.

    `others` are names that a kind of request itself refuses or ignores.
    """

    others: ClassVar[Collection[str]] = ()

    model: ModelName | None = None
    keep_alive: KeepAlive | None = None
    flexserve: Extension | None = None
    user: Annotated[str, StringConstraints(max_length=1024)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, body: Any) -> Any:
        refuse_others(body, {*names_of(cls), *cls.others})
        return body

    def terms(self, key: bytes) -> Terms:
        """Return the terms of a request that came with bearer `key`."""
        extension = self.flexserve or Extension()
        return Terms(
            owner=owner_of(key, self.user),
            priority=extension.priority,
            next_model=extension.next_model,
            keep_alive=self.keep_alive,
            reuse=extension.reuse,
        )


Answers = Annotated[int, Field(ge=1, le=MAX_ANSWERS)]


class SamplingRequest(SamplingFields, ModelRequest):
    """What all requests for text in OpenAI's and llama-server's names have in common."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Answers | None = Field(None, description="answers to each prompt")
    n_cmpl: Answers | None = Field(None, description="llama-server's `n`")
    cache_prompt: bool | None = Field(None, description="llama-server's `flexserve.reuse`")
    return_progress: bool | None = Field(
        None, description="a stream tells how much of the prompt is computed, as `prompt_progress`"
    )
    timings_per_token: bool | None = Field(
        None, description="a stream tells with each piece of text how long it took, as `timings`"
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_media(cls, body: Any) -> Any:
        refuse_media(body, "messages")
        return body

    @model_validator(mode="after")
    def _can_be_sampled(self) -> Self:
        self.sampling()
        _ = self.answers
        return self

    @property
    def answers(self) -> int:
        """How many answers to each prompt are wanted."""
        return agreed(n=self.n, n_cmpl=self.n_cmpl) or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def terms(self, key: bytes) -> Terms:
        """Return the terms of a request that came with bearer `key`."""
        terms = msgspec.structs.replace(
            super().terms(key), progress=bool(self.return_progress and self.stream)
        )
        return msgspec.structs.replace(terms, reuse=False) if self.cache_prompt is False else terms

    def pace(self) -> Pace:
        """Return what follows the pace of one answer."""
        return Pace(progress=bool(self.return_progress), per_token=bool(self.timings_per_token))


class ChatRequest(ReasoningFields, SamplingRequest):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=-1, le=MAX_ANSWER_TOKENS)] | None = Field(
        None, description="OpenAI's newer name of `max_tokens`"
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Tools | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = Field(
        None, description="false: the text ends with the conversation, and begins no turn of the assistant"
    )
    continue_final_message: bool | None = Field(
        None, description="the answer goes on with the assistant's last turn, as it does if there is one"
    )
    verbose: bool | None = Field(None, description="the prompt's text is said, too, as `__verbose`")

    @model_validator(mode="after")
    def _ends_with_one_turn(self) -> Self:
        *_, before, last = [None, *(turn.role for turn in self.messages)]
        if before == last == "assistant":
            raise PydanticCustomError(
                "turn",
                "The last two are the assistant's: only one can be gone on with",
                {"param": "messages"},
            )
        goes_on = self.continue_final_message
        if goes_on and self.add_generation_prompt:
            raise PydanticCustomError(
                "order",
                "The assistant's turn is either begun or gone on with",
                {"param": "add_generation_prompt"},
            )
        if goes_on is not None and goes_on != (last == "assistant"):
            meant = "the assistant's" if goes_on else "not the assistant's"
            raise PydanticCustomError(
                "order", "The last message has to be {meant}", {"param": "messages", "meant": meant}
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        offered(self.tools, self.tool_choice)
        self.reasoning()
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError(
                "missing", "top_logprobs needs logprobs: true", {"param": "top_logprobs"}
            )
        return self

    def prompt(self) -> ChatPrompt:
        """Return the conversation."""
        tools, must_call = offered(self.tools, self.tool_choice)
        turns = [turn.message() for turn in self.messages]
        opens = self.add_generation_prompt is not False or self.messages[-1].role == "assistant"
        several = self.most_calls > 1 and not isinstance(self.tool_choice, NamedChoice)
        return ChatPrompt(turns, tools, must_call, several=several, opens=opens, **self.reasoning())

    @property
    def most_calls(self) -> int:
        """How many calls the answer may have."""
        if not self.tools or self.tool_choice == "none":
            return 0
        return 1 if self.parallel_tool_calls is False else MAX_TOOL_CALLS

    def limits(self) -> dict[str, int | None]:
        """Return the limit of the answer by the names that it has."""
        return super().limits() | {"max_completion_tokens": self.max_completion_tokens}

    def sampling(self, **more: Any) -> Sampling:
        """Return how to sample."""
        return super().sampling(logprobs=self.top_logprobs or 0 if self.logprobs else None, **more)


class CompletionRequest(SamplingRequest):
    """Body of POST /v1/completions."""

    prompt: Prompts = Field(description="text, tokens, or several of them")
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = Field(None, description="the prompt comes before the answer, with `logprobs` its own")
    suffix: Text | None = Field(
        None, description="text behind the gap that the answer fills, for a model that was trained to"
    )
    best_of: Answers | None = Field(None, description="of so many answers, the `n` likeliest are sent")

    @model_validator(mode="after")
    def _is_not_too_much(self) -> Self:
        count = self.answers
        if self.tried < count:
            raise PydanticCustomError("order", "It is smaller than n", {"param": "best_of"})
        if self.stream and self.tried > count:
            raise PydanticCustomError("order", "A stream cannot wait for the best", {"param": "best_of"})
        if len(self.prompts()) * self.tried > MAX_ANSWERS:
            raise PydanticCustomError("order", "These are more than {most} answers", {"most": MAX_ANSWERS})
        return self

    @property
    def tried(self) -> int:
        """How many answers to each prompt are made."""
        return self.best_of or self.answers

    def prompts(self) -> list[Prompt]:
        """Return the texts to continue, or the gaps. Raises PydanticCustomError for a gap between tokens."""
        prompts = prompts_of(self.prompt)
        return [_gap(prompt, self.suffix) for prompt in prompts] if self.suffix else prompts

    def limits(self) -> dict[str, int | None]:
        """Return the limit of the answer by the names that it has."""
        given = super().limits()
        return (
            given if any(limit is not None for limit in given.values()) else {"": DEFAULT_COMPLETION_TOKENS}
        )

    def sampling(self, **more: Any) -> Sampling:
        """Return how to sample."""
        return super().sampling(logprobs=self.logprobs, echo=self.echo, **more)


def _gap(prompt: Prompt, suffix: str) -> InfillPrompt:
    if not isinstance(prompt, TextPrompt):
        raise PydanticCustomError("order", "It needs a prompt in text", {"param": "suffix"})
    return InfillPrompt(prompt.text, suffix)
