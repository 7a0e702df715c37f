"""The bodies that ollama's clients send, checked field by field."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AliasChoices, Field, model_validator
from pydantic_core import PydanticCustomError

from flexserve.normal.api.embeddings import Dimensions
from flexserve.normal.api.fields import HARMLESS, REFUSED
from flexserve.normal.api.media import refusal, refuse_media
from flexserve.normal.api.prompts import Text
from flexserve.normal.api.reasoning import ReasoningFields
from flexserve.normal.api.sampling_fields import SamplingFields
from flexserve.normal.api.schemas import Body, ModelName, ModelRequest, refuse_unsupported
from flexserve.normal.api.tools import FunctionName, Label, Tools, compact, offered
from flexserve.protocol.bounds import MAX_MESSAGES, MAX_TEXTS, MAX_TOOL_CALLS, MAX_TOP_LOGPROBS
from flexserve.protocol.prompts import ChatMessage, ChatPrompt, InfillPrompt, TextPrompt, ToolCall
from flexserve.protocol.sampling import Sampling

# Parameters not implemented, and the values with which they change nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "images": (None, []),
    "context": (None, []),
    "template": (None, ""),
    "width": (None, 0),
    "height": (None, 0),
    "steps": (None, 0),
}
# The options, and those of older versions that change no answer: how it is computed is the server's affair.
OPTIONS = (
    *(
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "seed",
        "stop",
        "num_predict",
        "num_ctx",
        "num_keep",
    ),
    *("repeat_last_n", "repeat_penalty", "presence_penalty", "frequency_penalty"),
    *("mirostat", "mirostat_tau", "mirostat_eta"),
    *("f16_kv", "vocab_only", "logits_all", "embedding_only"),
)


class Options(SamplingFields):
    """How to sample, in ollama's names; null stands for what is usual."""

    num_predict: Annotated[int, Field(ge=-2, le=1 << 20)] | None = None
    num_ctx: Annotated[int, Field(ge=0, le=1 << 30)] | None = None
    num_keep: Annotated[int, Field(ge=-1, le=1 << 20)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _knows_them(cls, body: Any) -> Any:
        for name, value in body.items() if isinstance(body, dict) else ():
            refused = REFUSED.get(name)
            asks_nothing = value is None or (refused is not None and value in refused.harmless)
            if not asks_nothing and name not in (*OPTIONS, *HARMLESS):
                raise PydanticCustomError(
                    "unsupported",
                    "This server does not support option {option}. Leave it out.",
                    {"param": f"options.{name[:64]}", "option": name[:64]},
                )
        return body

    def limits(self) -> dict[str, int | None]:
        """Return the limit of the answer: 0 and less are none here."""
        return {"num_predict": self.num_predict or None}


class OllamaRequest(ModelRequest):
    """What all of ollama's requests to a model have in common."""

    others: ClassVar[Collection[str]] = tuple(UNSUPPORTED)

    options: Options | None = None
    stream: bool | None = None
    shift: bool | None = None  # whether the answer goes on when the context is full

    @model_validator(mode="before")
    @classmethod
    def _translate(cls, body: Any) -> Any:
        refuse_media(body, "messages")
        if isinstance(body, dict) and body.get("images"):
            raise refusal("Images", "images")
        refuse_unsupported(body, UNSUPPORTED)
        if isinstance(body, dict) and str(body.get("keep_alive")).startswith("-"):
            return {**body, "keep_alive": -1}  # any negative duration means for ever
        return body

    @property
    def streams(self) -> bool:
        """Whether the answer is a stream: here, it is unless the request says no."""
        return self.stream is not False


class _Answered(OllamaRequest):
    """What chats and completions have in common."""

    format: Literal["", "json"] | dict[str, Any] | None = None
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self.sampling()
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError(
                "missing", "top_logprobs needs logprobs: true", {"param": "top_logprobs"}
            )
        return self

    def reasoning(self) -> dict[str, Any]:
        """Return whether and how hard to think, as fields of a ChatPrompt."""
        fields: dict[str, Any] = {"enable_thinking": self.think}
        if isinstance(self.think, str):
            fields = {"enable_thinking": True, "reasoning_effort": self.think}
        return ReasoningFields.model_validate(fields).reasoning()

    def sampling(self) -> Sampling:
        """Return how to sample. Raises PydanticCustomError for a format that is too long."""
        schema = None
        if self.format:
            schema = compact({} if self.format == "json" else self.format, "format")
        options = self.options or Options()
        logprobs = self.top_logprobs or 0 if self.logprobs else None
        return options.sampling(schema=schema, n_keep=options.num_keep, shift=self.shift, logprobs=logprobs)


class _Function(Body):
    name: FunctionName
    arguments: dict[str, Any] = Field(default_factory=dict)


class _MadeCall(Body):
    function: _Function
    id: Label | None = None


class OllamaTurn(Body):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text = ""
    thinking: Text | None = None  # the template decides whether the model sees its old thoughts again
    images: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_calls: Annotated[list[_MadeCall], Field(max_length=MAX_TOOL_CALLS)] | None = None
    tool_name: Label | None = None
    tool_call_id: Label | None = None

    def message(self, number: int) -> ChatMessage:
        """Return it as it crosses to the secure world; `number`: its place in the conversation."""
        calls = [
            ToolCall(
                call.id or f"call_{number}_{place}",
                call.function.name,
                json.dumps(call.function.arguments, ensure_ascii=False),
            )
            for place, call in enumerate(self.tool_calls or [])
        ]
        of = self.tool_call_id or ""
        thought = (self.thinking or "") if self.role == "assistant" else ""
        return ChatMessage(self.role, self.content, calls, of, self.tool_name or "", thought)


class ChatBody(_Answered):
    """Body of POST /api/chat. Without messages it loads the model, or lets it go."""

    messages: Annotated[list[OllamaTurn], Field(max_length=MAX_MESSAGES)] = Field(default_factory=list)
    tools: Tools | None = None

    def prompt(self) -> ChatPrompt:
        """Return the conversation, which is not empty."""
        turns = [turn.message(number) for number, turn in enumerate(self.messages)]
        offer = offered(self.tools, None)
        return ChatPrompt(_with_ids(turns), *offer, several=True, **self.reasoning())


class GenerateBody(_Answered):
    """Body of POST /api/generate. Without a prompt it loads the model, or lets it go."""

    prompt: Text | None = None
    suffix: Text | None = None
    system: Text | None = None
    raw: bool | None = None

    def request_prompt(self) -> ChatPrompt | TextPrompt | InfillPrompt:
        """Return what to answer: a conversation of one question, a raw text, or a gap."""
        text = self.prompt or ""
        if self.suffix:
            return InfillPrompt(text, self.suffix)
        if self.raw:
            return TextPrompt(text)
        turns = [ChatMessage("system", self.system)] if self.system else []
        return ChatPrompt([*turns, ChatMessage("user", text)], **self.reasoning())


class EmbedBody(OllamaRequest):
    """Body of POST /api/embed. A text that does not fit is refused, also with `truncate`."""

    input: Text | Annotated[list[Text], Field(max_length=MAX_TEXTS)]
    truncate: bool | None = None
    dimensions: Dimensions | Literal[0] | None = None  # 0 is all


class OldEmbedBody(OllamaRequest):
    """Body of POST /api/embeddings, which ollama has had before /api/embed."""

    prompt: Text


class NameBody(Body):
    """Body of routes that are about a model. Older clients call it `name`."""

    model: ModelName = Field(validation_alias=AliasChoices("model", "name"))
    verbose: bool | None = None
    stream: bool | None = None


class CopyBody(Body):
    """Body of POST /api/copy."""

    source: ModelName
    destination: ModelName


def _with_ids(turns: list[ChatMessage]) -> list[ChatMessage]:
    """Return `turns` with each result saying which call it answers: ollama's come in the calls' order."""
    open_calls: list[ToolCall] = []
    done = []
    for turn in turns:
        if turn.tool_calls:
            open_calls = list(turn.tool_calls)
        if turn.role == "tool" and not turn.tool_call_id:
            at = next((n for n, call in enumerate(open_calls) if turn.name in ("", call.name)), None)
            answered = open_calls.pop(at).id if at is not None else "call"
            done.append(ChatMessage(turn.role, turn.content, [], answered, turn.name))
        else:
            done.append(turn)
    return done
