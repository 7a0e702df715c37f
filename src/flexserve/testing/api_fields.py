"""docs/api-fields.md, from the requests' own fields and the tables of those that are refused or ignored.

python -m flexserve.testing.api_fields docs/api-fields.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flexserve.normal.api import anthropic, ollama_bodies, responses, schemas, tools
from flexserve.normal.api.anthropic import ConversationRequest, MessagesRequest
from flexserve.normal.api.embeddings import EmbeddingsRequest
from flexserve.normal.api.fields import HARMLESS, REFUSED, names_of
from flexserve.normal.api.llama_server import (
    DetokenizeRequest,
    InfillRequest,
    NativeCompletion,
    NativeEmbeddings,
    TokenizeRequest,
)
from flexserve.normal.api.ollama_bodies import ChatBody, EmbedBody, GenerateBody
from flexserve.normal.api.rerank import RerankRequest
from flexserve.normal.api.responses import ResponsesRequest
from flexserve.normal.api.schemas import ChatRequest, CompletionRequest, SamplingRequest
from flexserve.protocol.sampling import Sampling

ROUTES: dict[str, type[BaseModel]] = {
    "chat": ChatRequest,
    "completions": CompletionRequest,
    "embeddings": EmbeddingsRequest,
}
OTHERS: dict[str, type[BaseModel]] = {
    "/completion": NativeCompletion,
    "/infill": InfillRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
    "/embedding": NativeEmbeddings,
    "/v1/rerank": RerankRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": ConversationRequest,
    "/v1/responses": ResponsesRequest,
    "/api/chat": ChatBody,
    "/api/generate": GenerateBody,
    "/api/embed": EmbedBody,
}
# Of the routes below a path: fields that they refuse by name, and that they ignore.
OWN: dict[str, tuple[Iterable[str], Iterable[str]]] = {
    "/v1/messages": (anthropic.UNSUPPORTED, anthropic.IGNORED),
    "/v1/responses": ([*responses.UNSUPPORTED, "previous_response_id"], ()),
    "/api": (ollama_bodies.UNSUPPORTED, ()),
}
# Of parts that have fields of their own: what a part is called, and where it is; what is read, and refused.
ALL_OTHERS = ("all others",)
PARTS: dict[tuple[str, str], tuple[type[BaseModel] | Iterable[str], Iterable[str]]] = {
    ("message", "chat"): (schemas.Turn, schemas.NOT_IN_TURNS),
    ("`tool_calls`", "chat"): (tools.MadeCall, ()),
    ("`tools`: `function`", "chat"): (tools.Function, ()),
    ("`response_format`: `json_schema`", "chat, completions"): (tools.NamedSchema, ()),
    ("`stream_options`", "chat, completions"): (schemas.StreamOptions, ALL_OTHERS),
    ("`flexserve`", "all"): (schemas.Extension, ALL_OTHERS),
    ("message", "`/v1/messages`"): (anthropic.Turn, ()),
    ("`tool_use`", "`/v1/messages`"): (anthropic.ToolUse, ()),
    ("`tool_result`", "`/v1/messages`"): (anthropic.ToolResult, ()),
    ("`tools`", "`/v1/messages`"): (anthropic.AnthropicTool, anthropic.NOT_IN_TOOLS),
    ("`tool_choice`", "`/v1/messages`"): (anthropic.AnthropicChoice, ()),
    ("`thinking`", "`/v1/messages`"): (anthropic.Thinking, ()),
    ("`output_config`", "`/v1/messages`"): (anthropic.OutputConfig, ()),
    ("`message`", "`/v1/responses`"): (responses.MessageItem, ()),
    ("`function_call`", "`/v1/responses`"): (responses.CallItem, ()),
    ("`function_call_output`", "`/v1/responses`"): (responses.OutputItem, ()),
    ("`reasoning` in `input`", "`/v1/responses`"): (responses.ReasoningItem, ()),
    ("`tools`", "`/v1/responses`"): (responses.FunctionTool, ()),
    ("`text`", "`/v1/responses`"): (responses.TextOptions, ()),
    ("`reasoning`", "`/v1/responses`"): (responses.Reasoning, responses.NOT_IN_REASONING),
    ("message", "`/api/chat`"): (ollama_bodies.OllamaTurn, ()),
    ("`options`", "`/api/…`"): (ollama_bodies.OPTIONS, ALL_OTHERS),
}
_HEAD = """\
# The fields of requests

Written by `python -m flexserve.testing.api_fields docs/api-fields.md`.

The routes are `/v1/chat/completions` (chat), `/v1/completions` and `/v1/embeddings`. A field changes the
answer as the first table says. Or it is refused by name (400 `unsupported_parameter`). Or it is ignored,
because no answer depends on it. A field that is in none of the tables is refused, too (400
`unknown_parameter`). Null is as good as nothing.

## What works

Defaults are llama.cpp's. The samplers are llama.cpp's own: equal seeds and logits give the tokens that it
gives. Penalties count the tokens of the prompt, too. Fields without a meaning here are OpenAI's.

| field | routes | default | meaning |
|---|---|---|---|
"""
_REFUSED = """
## What is refused

A value that asks for nothing is taken.

| field | whose | taken | instead |
|---|---|---|---|
"""
_IGNORED = """
## What is ignored

| field | whose | why no answer depends on it |
|---|---|---|
"""
_PARTS = """
## Inside of fields

Of parts of a request that have fields of their own, these are read. Others are ignored: clients send back
what servers answered, with labels and notes of all makers in it. What would be lost of a message or a tool is
refused by name, and so is whatever is unknown in `stream_options` and `flexserve`.

| part | of | read | refused |
|---|---|---|---|
"""
_OTHERS = """
## Other APIs

They take the same fields where they have them, by their own names, and refuse others in the same way.

| route | fields beside those that chat and completions share | refused by name, too | ignored, too |
|---|---|---|---|
"""


def document() -> str:
    """Return docs/api-fields.md."""
    openai = [_HEAD, *_working(), _REFUSED, *_refused(), _IGNORED, *_ignored()]
    return "".join([*openai, _OTHERS, *_of_others(), _PARTS, *_parts()])


def _working() -> Iterator[str]:
    names = dict.fromkeys(name for model in ROUTES.values() for name in model.model_fields)
    for name in names:
        found = {
            route: model.model_fields[name] for route, model in ROUTES.items() if name in model.model_fields
        }
        routes = "all" if len(found) == len(ROUTES) else ", ".join(found)
        meaning = next((field.description for field in found.values() if field.description), "")
        yield f"| `{name}` | {routes} | {_default(name)} | {meaning} |\n"


def _default(name: str) -> str:
    if name not in Sampling.__struct_fields__:
        return ""
    value = getattr(Sampling(), name)
    return "" if value in (None, [], False) else f"`{_text(value)}`"


def _refused() -> Iterator[str]:
    for name, field in sorted(REFUSED.items()):
        where = [route for route, model in ROUTES.items() if name not in model.model_fields]
        if where:
            only = "" if len(where) == len(ROUTES) else f" (in {', '.join(where)})"
            taken = ", ".join(f"`{_text(value)}`" for value in field.harmless)
            yield f"| `{name}`{only} | {field.whose} | {taken} | {field.instead} |\n"


def _ignored() -> Iterator[str]:
    for name, field in sorted(HARMLESS.items()):
        yield f"| `{name}` | {field.whose} | {field.why} |\n"


def _of_others() -> Iterator[str]:
    for route, model in OTHERS.items():
        shared = SamplingRequest.model_fields if issubclass(model, SamplingRequest) else {}
        fields = [*model.model_fields, *sorted(names_of(model) - model.model_fields.keys())]
        names = [name for name in fields if name not in shared]
        only = "" if shared else "only these: "
        refused, ignored = next((own for path, own in OWN.items() if route.startswith(path)), ((), ()))
        yield f"| `{route}` | {only}{_code(names)} | {_code(refused)} | {_code(ignored)} |\n"


def _parts() -> Iterator[str]:
    for (part, where), (model, refused) in PARTS.items():
        others = "all others" if refused is ALL_OTHERS else _code(refused)
        yield f"| {part} | {where} | {_code(_names(model))} | {others} |\n"


def _names(part: type[BaseModel] | Iterable[str]) -> Iterable[str]:
    if not isinstance(part, type):
        return part
    return [field.alias or name for name, field in part.model_fields.items()]


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def main() -> None:
    """Write the document."""
    Path(sys.argv[1]).write_text(document())


if __name__ == "__main__":
    main()
