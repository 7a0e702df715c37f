"""Chat templates with tools: what they are given, and what they may not do with it."""

from __future__ import annotations

import json
import types

import pytest
from templates import template_of

from flexserve.errors import CallerError, StoredDataError
from flexserve.protocol.notation import CallNotation, Notation, Style
from flexserve.protocol.prompts import ChatMessage, ChatPrompt, ToolCall
from flexserve.protocol.requests import Generate
from flexserve.protocol.sampling import Sampling
from flexserve.trusted.text.chat_template import ChatTemplate
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
    return template_of(source, types.SimpleNamespace(text_of=lambda _key: "", shown=lambda _marks: {}))


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


CALLED = ChatMessage("assistant", "", [ToolCall("x", "look", '{"n": 1}')])
RESULT = ChatMessage("tool", "42", tool_call_id="x")


def test_a_template_that_knows_no_tools_has_them_told_in_words() -> None:
    turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    text = template(turns).render(ChatPrompt([USER, CALLED, RESULT, USER], TOOLS))
    told, _, rest = text.partition("<user>")
    assert json.loads(TOOLS)[0]["function"]["description"] in told
    assert told.startswith("<system>")
    call = '<assistant><tool_call>\n{"name": "look", "arguments": {"n": 1}}\n</tool_call>'
    assert rest == f"hello{call}<user><tool_response>\n42\n</tool_response>\nhello"


def test_a_template_that_is_offered_no_tools_may_still_know_calls_and_results() -> None:
    turns = [USER, CALLED, RESULT]
    calls = "{% for m in messages %}{% for c in m['tool_calls'] or [] %}{{ c.function.name }}={% endfor %}"
    knowing = template(calls + "{{ m.content }};{% endfor %}")
    assert knowing.render(ChatPrompt(turns)) == "hello;look=;42;"
    assert "<b> & é" in knowing.render(ChatPrompt(turns, TOOLS))


def test_what_the_system_says_is_in_the_users_turn_where_the_template_has_no_other_place() -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('No system!') }}{% endif %}" + PLAIN
    ignoring = "{% for m in messages if m.role != 'system' %}{{ m.content }};{% endfor %}"
    turns = [ChatMessage("system", "Be kind."), USER]
    assert template(refusing).render(ChatPrompt(turns)) == "Be kind.\n\nhello"
    assert template(ignoring).render(ChatPrompt(turns)) == "Be kind.\n\nhello;"
    assert template(PLAIN).render(ChatPrompt(turns)) == "Be kind.hello"


def test_a_templates_own_words_are_passed_on_and_nothing_else() -> None:
    source = "{% if messages[0].content %}{{ raise_exception('Not ' + messages[0].content) }}{% endif %}"
    with pytest.raises(CallerError) as caught:
        template(source).render(ChatPrompt([ChatMessage("user", "secret")]))
    assert "Not …" in str(caught.value)
    assert "secret" not in str(caught.value)
    with pytest.raises(CallerError, match="roles must alternate"):
        template("{{ raise_exception('roles must alternate') }}").render(ChatPrompt([USER]))


CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_text_that_begins_no_turn_of_the_assistant_ends_with_the_conversation() -> None:
    turns = [USER, ChatMessage("assistant", "Yes")]
    assert template(CHAT).render(ChatPrompt([USER], opens=False)) == "<user>hello"
    assert template(CHAT).render(ChatPrompt(turns, opens=False)) == "<user>hello<assistant>Yes"
    closed = template("").render(ChatPrompt([USER], opens=False, thinking=False))
    assert closed == "<|im_start|>user\nhello<|im_end|>\n"


def test_an_assistants_last_turn_is_gone_on_with() -> None:
    said = ChatMessage("assistant", "It is")
    assert template(CHAT).render(ChatPrompt([USER, said])) == "<user>hello<assistant>It is"
    assert template(CHAT + "<think>\n").render(ChatPrompt([USER, said])) == (
        "<user>hello<assistant><think>\n</think>\n\nIt is"
    )
    thinking = ChatMessage("assistant", "", thought="hm")
    assert template(CHAT + "<think>\n").render(ChatPrompt([USER, thinking])) == (
        "<user>hello<assistant><think>hm"
    )


def test_whether_to_think_is_told_to_the_template_or_seen_to() -> None:
    def rendered(source: str, **fields: object) -> str:
        return template(source).render(ChatPrompt([USER], **fields))  # type: ignore[arg-type]

    knowing = "{{ 'on' if enable_thinking else 'off' }}{# <think> #}"
    assert rendered(knowing) == "on"
    assert rendered(knowing, thinking=True) == "on"
    assert rendered(knowing, thinking=False) == "off"
    assert rendered("x<think>\n", thinking=False) == "x<think>\n\n</think>\n\n"
    assert rendered("x{# <think> #}", thinking=False) == "x<think>\n\n</think>\n\n"
    assert rendered("x", thinking=False) == "x"
    assert rendered("{{ effort }}", values='{"effort": "high", "messages": "forged"}') == "high"
    assert rendered("{{ messages[0].content }}", values='{"messages": "forged"}') == "hello"


@pytest.mark.parametrize(
    ("marks", "call"),
    [
        ("<|tool_list_start|>", "<|tool_call_start|>[look(n=1)]<|tool_call_end|>"),
        ("<|tool_call|>", '<|tool_call|>[{"name": "look", "arguments": {"n": 1}}]'),
        (">>>all <|start_header_id|>", '>>>look\n{"n": 1}'),
    ],
)
def test_calls_that_a_template_does_not_write_are_in_what_the_assistant_says(marks: str, call: str) -> None:
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{# " + marks + " {{ tools }} #}"
    told = template(source + "{{ tools }}").render(ChatPrompt([USER, CALLED, RESULT]))
    assert told == f"<user>hello<assistant>{call}<tool>42"


def test_an_answer_that_is_confined_has_the_head_of_its_notation() -> None:
    harmony = template(CHAT.replace("<assistant>", "<|start|>assistant") + "{# <|channel|> <|message|> #}")
    prompt = ChatPrompt([USER])
    final = "<user>hello<|start|>assistant<|channel|>final<|message|>"
    assert harmony.render(prompt, confined=True) == final
    assert harmony.render(ChatPrompt([USER], thought_tokens=0)) == final
    assert harmony.render(ChatPrompt([USER, ChatMessage("assistant", "It")])) == f"{final}It"
    assert harmony.tools == "none"
    assert template("{{ tools }}{# <|channel|> <|message|> #}").tools == "harmony"
    recipients = template(CHAT.replace("<assistant>", ">>>") + "{# >>>all <|start_header_id|> #}")
    assert recipients.render(prompt) == "<user>hello>>>"
    assert recipients.render(prompt, confined=True) == "<user>hello>>>all\n"
    assert recipients.render(ChatPrompt([USER, ChatMessage("assistant", "It")])) == "<user>hello>>>all\nIt"


def test_ids_that_a_strict_template_refuses_are_replaced() -> None:
    strict = """{% for m in messages %}{% for c in m.tool_calls or [] %}
    {%- if c.id | length != 9 %}{{ raise_exception('id') }}{% endif %}{{ c.id }}{{ c.function.name }}
    {%- endfor %}{{ m.tool_call_id }}{% endfor %}"""
    text = template(strict).render(ChatPrompt([USER, CALLED, RESULT]))
    assert text == "call00000lookcall00000"


def test_a_template_that_joins_arguments_to_text_gets_them_as_text() -> None:
    turns = [USER, ChatMessage("assistant", "", [ToolCall("x", "look", '{"n": 1}')])]
    joining = "{% for c in messages[1].tool_calls %}{{ '>' + c.function.arguments }}{% endfor %}"
    assert template(joining).render(ChatPrompt(turns)) == '>{"n": 1}'


@pytest.mark.parametrize("tools", ["no json", "{}", "[1]", '[{"function":{}}]', '[{"function":{"name":1}}]'])
def test_tools_that_are_none_are_the_callers_mistake(tools: str) -> None:
    with pytest.raises(CallerError):
        template(TAGGED).render(ChatPrompt([USER], tools))


def test_the_notation_of_calls_is_read_off_what_the_template_writes() -> None:
    written = """{% for m in messages %}<{{ m.role }}>{{ m.content }}
    {%- for c in m.tool_calls or [] %}<call>
{"name": "{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}</call>{% endfor %}
    {%- endfor %}{{ tools }}"""
    assert template(written).notation.calls == CallNotation(
        Style.JSON, open="<call>\n", close="</call>", arguments_key="parameters"
    )
    assert template(written).tools == "json"
    assert template(PLAIN).notation == Notation()
    assert template(PLAIN).tools == "none"
    assert template("{{ tools }}").tools == "other"


def test_nothing_asked_for_is_nothing_confined() -> None:
    assert constraint(request(ChatPrompt([USER], TOOLS)), template(TAGGED), str) is None


def test_a_call_may_be_forced_and_an_answer_may_be_either() -> None:
    for source in (TAGGED, PLAIN, "{{ tools }}"):
        forced = constraint(request(ChatPrompt([USER], TOOLS, ["look"])), template(source), str)
        assert forced is not None
        assert "start: call\n" in forced.text
        either = constraint(request(ChatPrompt([USER], TOOLS), "{}"), template(source), str)
        assert either is not None
        assert "start: call | answer\n" in either.text
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
