"""What a model is asked: prompts, and what is converted without computing."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from flexserve.protocol.bounds import (
    MAX_MESSAGES,
    MAX_TOKENS,
    MAX_TOOL_CALLS,
    Count,
    Label,
    Name,
    Schema,
    Short,
    Struct,
    Text,
)
from flexserve.protocol.sampling import TokenId


class ToolCall(Struct, frozen=True):
    """A call of a tool that the model made: `arguments` is a JSON object as text."""

    id: Label
    name: Name
    arguments: Text


class ChatMessage(Struct, frozen=True):
    """One turn of a conversation.

    `tool_calls` and `thought` are of an assistant's turn; `tool_call_id` and `name` say what a tool's turn
    answers.
    """

    role: Annotated[str, Meta(min_length=1, max_length=32)]
    content: Text
    tool_calls: Annotated[list[ToolCall], Meta(max_length=MAX_TOOL_CALLS)] = msgspec.field(
        default_factory=list
    )
    tool_call_id: Label = ""
    name: Label = ""
    thought: Text = ""


class ChatPrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="chat"):
    """A conversation; the secure world renders the model's own chat template over it.

    `tools` is a JSON array of OpenAI's tool objects. `must_call` names the tools of which the model
    has to call one instead of answering; empty: it decides. `values` is a JSON object of variables that
    the template gets. `thinking`: whether the model is to think first; None: as its template has it.
    `thought_tokens`: after so many tokens of a thought its end is forced; None: never. Of an assistant's
    turn at the end the answer is the rest. `several`: where calls are confined to a grammar, there may be
    more than one. `opens`: the answer's turn is begun; else the text ends with the conversation.
    """

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    tools: Schema | None = None
    must_call: Annotated[list[Name], Meta(max_length=MAX_TOOL_CALLS)] = msgspec.field(default_factory=list)
    values: Schema | None = None
    thinking: bool | None = None
    thought_tokens: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    several: bool = False
    opens: bool = True


class TextPrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="text"):
    """Raw text to continue."""

    text: Text


class Snippet(Struct, frozen=True):
    """Another text of the project that a gap belongs to; `name` is its file's."""

    name: Short
    text: Text


class InfillPrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="infill"):
    """A gap in a text, for models that were trained to fill one: what is before it and behind it.

    `start` is how the filling begins.
    """

    prefix: Text
    suffix: Text
    start: Text = ""
    snippets: Annotated[list[Snippet], Meta(max_length=MAX_MESSAGES)] = msgspec.field(default_factory=list)


class ToTokens(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="to_tokens"):
    """A text to turn into tokens. `start`: with the one that begins a sequence, where the model has one.

    `special`: text like "<|im_end|>" means the control token. `pieces`: the bytes of each are wanted, too.
    """

    text: Text
    start: bool = False
    special: bool = True
    pieces: bool = False


class ToText(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="to_text"):
    """Tokens to turn into their text."""

    tokens: Annotated[list[Count], Meta(max_length=MAX_TOKENS)]


class AskTemplate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="template"):
    """The model's own chat template is wanted as text; "" where it has none.

    The first two pieces are the names of the tokens that begin and end a text, empty where there is none.
    Where clients render prompts, others follow (tee_client.rendering.shown_shape).
    """


Tokens = Annotated[list[TokenId | Text], Meta(min_length=1, max_length=MAX_TOKENS)]  # texts become tokens
Entry = Text | Tokens  # what is to be a vector


class TokenPrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tokens"):
    """Tokens to continue, as numbers; texts among them are cut into tokens."""

    tokens: Tokens


Prompt = ChatPrompt | TextPrompt | TokenPrompt | InfillPrompt
Source = ToTokens | ToText | ChatPrompt | AskTemplate  # of a conversion
