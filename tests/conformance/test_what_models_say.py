"""Models that say exactly what a script has, and what clients of a real server get of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import openai
import pytest
from real_server import Server

from flexserve.testing.architectures import make_model
from flexserve.testing.parrot import write_parrot

pytestmark = pytest.mark.engine

TEMPLATE = """{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% if tools %}<tool_call>{% endif %}
{%- for message in messages %}{{ message.content }}{% endfor %}="""
HELLO: Any = [{"role": "user", "content": "hi"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
        },
    }
    for name in ("f", "g")
]
INTEGER = {"type": "integer"}

Parrot = Callable[[str, list[str | int]], str]
Made = Callable[..., str]


@pytest.fixture
def parrot(serve: Callable[[Path, str], str], tmp_path: Path) -> Parrot:
    """Have the server serve a model that says these pieces; its name is returned."""

    def add(name: str, pieces: list[str | int]) -> str:
        write_parrot(tmp_path / "parrot.gguf", pieces, TEMPLATE)
        return serve(tmp_path / "parrot.gguf", name)

    return add


@pytest.fixture
def made(serve: Callable[[Path, str], str], tmp_path: Path) -> Made:
    """Have the server serve a model of random weights of an architecture; its name is returned."""

    def add(architecture: str, **parameters: int) -> str:
        path = tmp_path / f"{architecture}.gguf"
        make_model(architecture, path, parameters=parameters, quantised=False)
        return serve(path, architecture)

    return add


def said(client: openai.OpenAI, model: str, **more: Any) -> Any:
    answer = client.chat.completions.create(model=model, messages=HELLO, temperature=0, max_tokens=64, **more)
    return answer.choices[0]


def test_a_parrot_says_its_pieces(client: openai.OpenAI, parrot: Parrot) -> None:
    choice = said(client, parrot("plain", ["One ", "and", " two."]))
    assert (choice.message.content, choice.finish_reason) == ("One and two.", "stop")


@pytest.mark.parametrize(
    ("name", "pieces", "schema"),
    [
        ("items", ["[1, ", "2", ", 3", ", 4", "]"], {"prefixItems": [INTEGER, INTEGER], "items": False}),
        ("no-items", ["[1, ", "2", "]"], {"items": False}),
        ("required", ["{", "}"], {"type": "object", "required": ["x"]}),
        ("beside-any", ["[", "]"], {"minItems": 2, "maxItems": 3, "anyOf": [{"type": "array"}, INTEGER]}),
        (
            "beside-ref",
            ['"lo', 'ng"'],
            {"$defs": {"S": {"type": "string"}}, "$ref": "#/$defs/S", "maxLength": 3},
        ),
        ("format", ['"some', ' day"'], {"type": "string", "format": "date", "minLength": 1}),
        (
            "surrogate",
            ['{"s": "', "a\\ud83d", '"}'],
            {"properties": {"s": {"type": "string"}}, "required": ["s"]},
        ),
        (
            "named",
            ['{"a": ', '"wrong"', "}"],
            {"properties": {"a": INTEGER}, "additionalProperties": {"type": "string"}},
        ),
        ("twice", ['{"a": ', "1", ', "a"', ': "x"', "}"], {"properties": {"a": INTEGER}, "required": ["a"]}),
    ],
)
def test_a_whole_answer_is_valid_by_its_schema_though_the_model_says_another(
    client: openai.OpenAI, parrot: Parrot, name: str, pieces: list[str | int], schema: dict[str, Any]
) -> None:
    if "type" not in schema:
        kinds = {"items": "array", "properties": "object"}
        schema |= next(({"type": kind} for key, kind in kinds.items() if key in schema), {})
    form: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    choice = said(client, parrot(name, pieces), response_format=form)
    text = choice.message.content
    assert text != "".join(map(str, pieces))
    assert choice.finish_reason == "stop"
    value = json.loads(text, object_pairs_hook=_once)
    jsonschema_rs.validator_for(schema, validate_formats=True).validate(value)
    json.dumps(value, ensure_ascii=False).encode()  # no half of a character


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_the_bytes_of_a_character_in_four_tokens_are_the_tokens_own(
    client: openai.OpenAI, parrot: Parrot
) -> None:
    choice = said(client, parrot("bytes", ["ok ", 240, 159, 152, 184, " end"]), logprobs=True)
    found = [one.bytes for one in choice.logprobs.content]
    assert found == [[*b"ok "], [240], [159], [152], [184], [*b" end"]]
    assert b"".join(map(bytes, found)).decode() == choice.message.content


CALL = '{"name": "g", "arguments": {"x": 1}}'


@pytest.mark.parametrize(
    ("name", "pieces", "content", "arguments"),
    [
        (
            "thought",
            [
                "<think>",
                "call ",
                f"<tool_call>{CALL}</tool_call>",
                " maybe</think>",
                "<tool_call>",
                CALL,
                "</tool_call>",
            ],
            None,
            {"x": 1},
        ),
        ("mentioned", ["Example: ", "<tool_call>", " is a tag."], "Example: <tool_call> is a tag.", None),
        (
            "lines",
            ["<tool_call>", '{"name": "g", "arguments": {"x": 1', ', "s": "a\nb"', "}}", "</tool_call>"],
            None,
            {"x": 1, "s": "a\nb"},
        ),
        (
            "text",
            ["<tool_call>", '{"name": "g", "arguments": "{\\"x\\": 1}"}', "</tool_call>"],
            None,
            {"x": 1},
        ),
        ("none", ["<tool_call>", '{"name": "g"}', "</tool_call>"], None, {}),
        ("empty", ["<tool_call>", '{"name": "g", "arguments": ""}', "</tool_call>"], None, {}),
    ],
)
def test_calls_are_told_from_thoughts_and_texts(
    client: openai.OpenAI,
    parrot: Parrot,
    name: str,
    pieces: list[str | int],
    content: str | None,
    arguments: dict[str, Any] | None,
) -> None:
    choice = said(client, parrot(name, pieces), tools=TOOLS)
    assert choice.message.content == content
    calls = [
        (call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or []
    ]
    assert calls == ([] if arguments is None else [("g", arguments)])
    assert choice.finish_reason == ("stop" if arguments is None else "tool_calls")


def test_text_asked_of_models_that_only_read_disturbs_nobody(
    client: openai.OpenAI, server: Server, made: Made
) -> None:
    stream = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=40, stream=True)
    next(stream)
    for model in (made("bert"), made("t5encoder")):
        for _ in range(6):
            with pytest.raises(openai.BadRequestError) as refused:
                said(client, model)
            assert refused.value.code == "generation_unsupported"
    assert list(stream)[-1].choices[0].finish_reason is not None


@pytest.mark.parametrize("family", ["gemma2", "gpt-oss"])
def test_a_prompt_longer_than_the_window_is_answered_alike_after_a_recall_of_everything(
    client: openai.OpenAI, server: Server, made: Made, family: str
) -> None:
    model, prompt = made(family), "bade fo ge, lami su? " * 20

    def logprobs(tokens: int = 8) -> np.ndarray[Any, Any]:
        answer = client.completions.create(
            model=model, prompt=prompt, temperature=0, max_tokens=tokens, logprobs=1
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens > 150
        assert answer.choices[0].logprobs is not None
        return np.array(answer.choices[0].logprobs.token_logprobs)

    fresh = logprobs()
    for tokens in (8, 150):
        logprobs(tokens)
        server.recall_all()
        assert np.allclose(logprobs(), fresh, atol=0.01)


def test_vectors_are_no_longer_than_the_model_makes_them(client: openai.OpenAI, made: Made) -> None:
    model = made("lfm2", embedding_length_out=16)
    first, second = (client.embeddings.create(model=model, input="ba be bi").data[0].embedding for _ in "12")
    assert len(first) == 16
    assert first == second
