"""Models that write calls and thoughts in many notations, and what clients of a real server get of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest

from flexserve.testing.parrot import write_parrot

pytestmark = pytest.mark.engine

HELLO: Any = [{"role": "user", "content": "hi"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {
                "type": "object",
                "properties": {"n": {"type": "integer"}, "s": {"type": "string"}},
                "required": ["n"],
            },
        },
    }
]
HEAD = "{% for m in messages %}[{{ m.role }}]{{ m.content or '' }}"
CALLS = "{% for c in m.tool_calls or [] %}{% set f = c.function %}"
END = "{% endfor %}{% endfor %}{{ tools }}="
SECTION = HEAD + CALLS + "<|one|>{{ f.name }}<|args|>{{ f.arguments | tojson }}<|end_one|>" + END
TAGS = (
    HEAD
    + CALLS
    + "<call={{ f.name }}>{% for k, v in f.arguments.items() %}<arg={{ k }}>{{ v }}</arg>"
    + ("{% endfor %}</call>" + END)
)
HARMONY = HEAD + "{% endfor %}{# <|channel|> <|message|> #}{{ tools }}<|start|>assistant"
HARMONY_CONTROLS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>", "<|call|>")
PLAIN = HEAD + "{% endfor %}="
THINKING = PLAIN + "<think>"

Parrot = Callable[..., str]


@pytest.fixture
def parrot(serve: Callable[[Path, str], str], tmp_path: Path) -> Parrot:
    """Have the server serve a model with a template that says these pieces; its name is returned."""

    def add(name: str, template: str, pieces: Sequence[str], controls: Sequence[str] = ()) -> str:
        write_parrot(tmp_path / "parrot.gguf", list(pieces), template, controls=controls)
        return serve(tmp_path / "parrot.gguf", name)

    return add


def whole(client: openai.OpenAI, model: str, messages: Any = HELLO, **more: Any) -> Any:
    answer = client.chat.completions.create(
        model=model, messages=messages, temperature=0, max_tokens=96, **more
    )
    return answer.choices[0]


def streamed(client: openai.OpenAI, model: str, **more: Any) -> tuple[str, str, list[tuple[str, str]], str]:
    """Return what is said, what is thought, the calls and the reason of a streamed answer."""
    said = thought = reason = ""
    calls: list[list[str]] = []
    chunks: Any = client.chat.completions.create(
        model=model, messages=HELLO, temperature=0, max_tokens=96, stream=True, **more
    )
    for chunk in chunks:
        choice = chunk.choices[0]
        said += choice.delta.content or ""
        thought += getattr(choice.delta, "reasoning_content", None) or ""
        for call in choice.delta.tool_calls or []:
            if call.id:
                calls.append([call.function.name, ""])
            calls[-1][1] += call.function.arguments
        reason = choice.finish_reason or reason
    return said, thought, [(name, arguments) for name, arguments in calls], reason


@pytest.mark.parametrize(
    ("name", "template", "pieces", "controls", "thought", "said", "arguments"),
    [
        (
            "section",
            SECTION,
            ["So.", "<|one|>", "look", "<|args|>", '{"n": ', "1}", "<|end_one|>"],
            ("<|one|>", "<|args|>", "<|end_one|>"),
            "",
            "So.",
            {"n": 1},
        ),
        (
            "tags",
            TAGS,
            [
                "<think>",
                "hm",
                "</think>",
                "<call=look>",
                "<arg=s>",
                "12",
                "</arg>",
                *("<arg=n>", "3", "</arg></call>"),
            ],
            (),
            "hm",
            None,
            {"s": "12", "n": 3},
        ),
        (
            "harmony-call",
            HARMONY,
            [
                "<|channel|>",
                "commentary to=functions.look ",
                *HARMONY_CONTROLS[4:5],
                "<|message|>",
                '{"n": 1}',
            ],
            HARMONY_CONTROLS,
            "",
            None,
            {"n": 1},
        ),
        (
            "harmony-thought",
            HARMONY,
            ["<|channel|>", "analysis", "<|message|>", "hm", "<|end|>"],
            HARMONY_CONTROLS,
            "hm",
            "",
            None,
        ),
        (
            "untold",
            PLAIN,
            ["<tool_call>", '{"name": "look", ', '"arguments": ', '{"n": 1}}', "</tool_call>"],
            (),
            "",
            None,
            {"n": 1},
        ),
        (
            "open-thought",
            THINKING,
            ["so ", "be it", "</think>", "\n\n", "Yes."],
            (),
            "so be it",
            "Yes.",
            None,
        ),
    ],
)
def test_calls_and_thoughts_come_apart_whole_and_in_a_stream(
    client: openai.OpenAI,
    parrot: Parrot,
    name: str,
    template: str,
    pieces: list[str],
    controls: Sequence[str],
    thought: str,
    said: str | None,
    arguments: dict[str, Any] | None,
) -> None:
    model = parrot(name, template, pieces, controls)
    choice = whole(client, model, tools=TOOLS)
    assert choice.message.content == said
    assert (getattr(choice.message, "reasoning_content", None) or "") == thought
    calls = [
        (one.function.name, json.loads(one.function.arguments)) for one in choice.message.tool_calls or []
    ]
    assert calls == ([] if arguments is None else [("look", arguments)])
    assert choice.finish_reason == ("stop" if arguments is None else "tool_calls")
    found = streamed(client, model, tools=TOOLS)
    assert found[:2] == (said or "", thought)
    assert [(one, json.loads(text)) for one, text in found[2]] == calls
    assert found[3] == choice.finish_reason


@pytest.mark.parametrize(
    ("name", "template", "controls"),
    [("forced-tags", TAGS, ()), ("forced-section", SECTION, ("<|one|>", "<|args|>", "<|end_one|>"))],
)
def test_a_call_is_forced_in_the_models_own_notation(
    client: openai.OpenAI, parrot: Parrot, name: str, template: str, controls: Sequence[str]
) -> None:
    model = parrot(name, template, ["I ", "would ", "rather ", "not."], controls)
    choice = whole(client, model, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    [call] = choice.message.tool_calls
    assert call.function.name == "look"
    assert call.function.arguments.startswith("{")
    if choice.finish_reason == "tool_calls":
        assert isinstance(json.loads(call.function.arguments)["n"], int)


def test_several_calls_are_forced_unless_the_client_wants_one(client: openai.OpenAI, parrot: Parrot) -> None:
    calls = ["<|one|>", "look", "<|args|>", '{"n": ', "1}", "<|end_one|>"]
    calls += ["<|one|>lo", "ok", "<|args|>{", '"n":', " 2", "}<|end_one|>"]  # no piece comes twice
    model = parrot("forced-several", SECTION, calls, ("<|one|>", "<|args|>", "<|end_one|>"))
    for parallel, wanted in ((True, [{"n": 1}, {"n": 2}]), (False, [{"n": 1}])):
        choice = whole(client, model, tools=TOOLS, tool_choice="required", parallel_tool_calls=parallel)
        assert [json.loads(one.function.arguments) for one in choice.message.tool_calls] == wanted
        assert choice.finish_reason == "tool_calls"
    named = {"type": "function", "function": {"name": "look"}}
    assert len(whole(client, model, tools=TOOLS, tool_choice=named).message.tool_calls) == 1


def test_a_thought_ends_when_its_tokens_are_spent(client: openai.OpenAI, parrot: Parrot) -> None:
    model = parrot("spent", THINKING, ["one ", "two ", "three ", "four ", "</think>", "Yes."], ("</think>",))
    choice = whole(client, model, extra_body={"reasoning_budget_tokens": 2})
    assert choice.message.reasoning_content == "one two"
    assert choice.message.content == "Yes."
    choice = whole(client, model)
    assert choice.message.reasoning_content == "one two three four"


def test_what_follows_a_thought_obeys_a_schema(client: openai.OpenAI, parrot: Parrot) -> None:
    model = parrot("then-json", THINKING, ["hm ", "yes", "</think>", "no ", "{", '"a"', ":", "1", "}"])
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    choice = whole(client, model, response_format=form)
    assert choice.message.reasoning_content == "hm yes"
    assert set(json.loads(choice.message.content)) == {"a"}


def test_an_assistants_last_turn_is_gone_on_with(client: openai.OpenAI, parrot: Parrot) -> None:
    model = parrot("goes-on", PLAIN, ["It", " is", " so."])
    messages = [*HELLO, {"role": "assistant", "content": "It"}]
    assert whole(client, model, messages).message.content == " is so."
