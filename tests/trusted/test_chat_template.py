"""Chat templates with tools: what they are given, and what they may not do with it."""

from __future__ import annotations

import json
import types

import pytest
from templates import template_of

from flexserve.errors import CallerError, StoredDataError
from flexserve.protocol.calls import CallForm
from flexserve.protocol.messages import ChatMessage, ChatPrompt, Generate, ToolCall
from flexserve.protocol.sampling import Sampling
from flexserve.trusted.engine.vocabulary import ChatTemplate
from flexserve.trusted.text.constraint import constraint

# Templates of our own, in the manner of the families that call tools.
TAGGED = """{%- if tools %}{%- for tool in tools %}{{ tool | tojson }}
{%- endfor %}<tool_call>{%- endif %}
{%- for message in messages %}
    {%- if message.role == "skip" %}{%- continue %}{%- endif %}
<{{ message.role }}>{{ message.content }}
    {%- for tool_call in message.tool_calls %}
        {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
{"name": "{{ tool_call.name }}", "arguments": {{ tool_call.arguments | tojson }}}
    {%- endfor %}
    {%- if message.tool_call_id %}[{{ message.tool_call_id }}]{%- endif %}
{%- endfor %}"""
BARE = TAGGED.replace("<tool_call>", "").replace('"arguments"', '"parameters"')
PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"
TOOLS = '[{"type":"function","function":{"name":"look","description":"<b> & é"}}]'
USER = ChatMessage("user", "hello")


def template(source: str) -> ChatTemplate:
    return template_of(source, types.SimpleNamespace(text_of=lambda _key: ""))


def request(prompt: ChatPrompt, schema: str | None = None) -> Generate:
    return Generate(1, "m", prompt, Sampling(schema=schema))


def test_tools_are_written_as_json_and_not_as_html() -> None:
    text = template(TAGGED).render(ChatPrompt([USER], TOOLS))
    written = text.partition("<tool_call>")[0]
    assert json.loads(written) == json.loads(TOOLS)[0]
    assert "<b> & é" in written


def test_the_json_filter_takes_what_templates_give_it() -> None:
    source = "{{ tools | tojson(ensure_ascii=False, indent=10 ** 9, sort_keys=True) }}"
    assert len(template(source).render(ChatPrompt([USER], TOOLS))) < 1000


def test_without_tools_a_template_that_takes_them_writes_none() -> None:
    assert "tool_call" not in template(TAGGED).render(ChatPrompt([USER, ChatMessage("skip", "no")]))


def test_a_call_and_its_result_come_back_as_objects() -> None:
    turns = [
        USER,
        ChatMessage("assistant", "", [ToolCall("call_1", "look", '{"n": 1}')]),
        ChatMessage("tool", "42", tool_call_id="call_1"),
    ]
    text = template(TAGGED).render(ChatPrompt(turns, TOOLS))
    assert '{"name": "look", "arguments": {"n": 1}}' in text
    assert "42[call_1]" in text


@pytest.mark.parametrize("arguments", ["no json", "[1]", "[" * 100_000])
def test_arguments_that_are_no_object_stay_text(arguments: str) -> None:
    turns = [USER, ChatMessage("assistant", "", [ToolCall("call_1", "look", arguments)])]
    assert json.dumps(arguments) in template(TAGGED).render(ChatPrompt(turns))


@pytest.mark.parametrize(
    "prompt",
    [
        ChatPrompt([USER], TOOLS),
        ChatPrompt([USER, ChatMessage("tool", "42", tool_call_id="x")]),
        ChatPrompt([USER, ChatMessage("assistant", "", [ToolCall("x", "look", "{}")])]),
    ],
)
def test_a_template_that_knows_no_tools_refuses_them(prompt: ChatPrompt) -> None:
    with pytest.raises(CallerError) as caught:
        template(PLAIN).render(prompt)
    assert caught.value.code == "tools_unsupported"


def test_a_template_that_is_offered_no_tools_may_still_know_calls_and_results() -> None:
    turns = [USER, ChatMessage("assistant", "", [ToolCall("x", "look", "{}")]), ChatMessage("tool", "42")]
    calls = "{% for m in messages %}{% for c in m['tool_calls'] or [] %}{{ c.function.name }}={% endfor %}"
    knowing = template(calls + "{{ m.content }};{% endfor %}")
    assert knowing.render(ChatPrompt(turns)) == "hello;look=;42;"
    with pytest.raises(CallerError) as caught:
        knowing.render(ChatPrompt(turns, TOOLS))
    assert caught.value.code == "tools_unsupported"


def test_a_template_that_joins_arguments_to_text_gets_them_as_text() -> None:
    turns = [USER, ChatMessage("assistant", "", [ToolCall("x", "look", '{"n": 1}')])]
    joining = "{% for c in messages[1].tool_calls %}{{ '>' + c.function.arguments }}{% endfor %}"
    assert template(joining).render(ChatPrompt(turns)) == '>{"n": 1}'


@pytest.mark.parametrize("tools", ["no json", "{}", "[1]", '[{"function":{}}]', '[{"function":{"name":1}}]'])
def test_tools_that_are_none_are_the_callers_mistake(tools: str) -> None:
    with pytest.raises(CallerError):
        template(TAGGED).render(ChatPrompt([USER], tools))


def test_the_form_of_calls_is_known_only_where_there_are_tools() -> None:
    assert template(TAGGED).call_form is CallForm.TAGGED
    assert template(BARE).call_form is CallForm.BARE
    assert template(PLAIN + "{# <tool_call> #}").call_form is None


def test_nothing_asked_for_is_nothing_confined() -> None:
    assert constraint(request(ChatPrompt([USER], TOOLS)), template(TAGGED), str) is None


def test_a_call_may_be_forced_and_an_answer_may_be_either() -> None:
    forced = constraint(request(ChatPrompt([USER], TOOLS, ["look"])), template(TAGGED), str)
    assert forced is not None
    assert "<tool_call>" in forced
    assert "start: call\n" in forced
    either = constraint(request(ChatPrompt([USER], TOOLS), "{}"), template(TAGGED), str)
    assert either is not None
    assert "start: call | answer\n" in either


def test_a_call_cannot_be_forced_in_a_form_that_nobody_knows() -> None:
    unknown = template(TAGGED.replace("<tool_call>", ""))
    with pytest.raises(CallerError):
        constraint(request(ChatPrompt([USER], TOOLS, ["look"])), unknown, str)
    with pytest.raises(CallerError):
        constraint(request(ChatPrompt([USER], TOOLS, ["other"])), template(TAGGED), str)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}{{ tools.x.y.z }}",
        "{{ tools | tojson(indent='x' * 10) }}{{ 1 / 0 }}",
    ],
)
def test_a_hostile_template_ends_in_bad_stored_data(source: str) -> None:
    with pytest.raises(StoredDataError):
        template(source + "{{ tools }}").render(ChatPrompt([USER], TOOLS))
