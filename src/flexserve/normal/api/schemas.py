"""The bodies that clients send, checked field by field.

Bounds are those of the world protocol. Parameters that would change the answer and that this
server does not implement are refused by name; unknown ones are ignored, as OpenAI's clients add
some all the time.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from flexserve.world.messages import (
    MAX_MESSAGES,
    MAX_STOPS,
    MAX_TEXT,
    MAX_TOP_LOGPROBS,
    ChatMessage,
    ChatPrompt,
    Sampling,
    TextPrompt,
)

# OpenAI's default for /v1/completions; /v1/chat/completions has none.
DEFAULT_COMPLETION_TOKENS = 16

# Parameters not implemented, and the values with which they change nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "prediction": (None,),
    "web_search_options": (None,),
}

Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Tokens = Annotated[int, Field(ge=1, le=1 << 20)]


class _Body(BaseModel):
    # Strict: "5" is no number and true is no count. NaN is no temperature.
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class TextPart(_Body):
    """A piece of a message's content. Images, audio and files are refused."""

    type: Literal["text"]
    text: Text


class Turn(_Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_MESSAGES)]

    def message(self) -> ChatMessage:
        """Return it as it crosses to the secure world: "developer" is "system" to chat templates."""
        role = "system" if self.role == "developer" else self.role
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return ChatMessage(role, text)


class StreamOptions(_Body):
    """What a stream should contain besides the answer."""

    include_usage: bool | None = None


class _Request(_Body):
    """What chat and plain completions have in common."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    max_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, le=(1 << 63) - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, body: Any) -> Any:
        if isinstance(body, dict):
            for name, harmless in _UNSUPPORTED.items():
                if name in body and body[name] not in harmless:
                    raise PydanticCustomError(
                        "unsupported", "This server does not support {param}. Leave it out.", {"param": name}
                    )
        return body

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def _sampling(self, *, max_tokens: int | None, logprobs: int | None) -> Sampling:
        given = {
            "max_tokens": max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "logprobs": logprobs,
        }
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(stop=stop, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


class ChatRequest(_Request):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError(
                "missing", "top_logprobs needs logprobs: true", {"param": "top_logprobs"}
            )
        return self

    def prompt(self) -> ChatPrompt:
        """Return the conversation."""
        return ChatPrompt([turn.message() for turn in self.messages])

    def sampling(self) -> Sampling:
        """Return how to sample."""
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return self._sampling(max_tokens=limit, logprobs=self.top_logprobs or 0 if self.logprobs else None)


class CompletionRequest(_Request):
    """Body of POST /v1/completions."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _refuse_tokens(cls, value: Any) -> Any:
        if isinstance(value, list) and len(value) != 1:
            raise PydanticCustomError(
                "unsupported", "Send one prompt per request, as text", {"param": "prompt"}
            )
        return value

    def text(self) -> TextPrompt:
        """Return the text to continue."""
        return TextPrompt(self.prompt if isinstance(self.prompt, str) else self.prompt[0])

    def sampling(self) -> Sampling:
        """Return how to sample."""
        return self._sampling(max_tokens=self.max_tokens or DEFAULT_COMPLETION_TOKENS, logprobs=self.logprobs)


class RecallRequest(_Body):
    """Body of POST /recall: bytes to take back (null: all that no running request uses)."""

    bytes: Annotated[int, Field(ge=0, le=1 << 53)] | None = None
    deadline_ms: Annotated[float, Field(ge=0, le=60_000)] = 2000
