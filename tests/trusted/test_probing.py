"""How a model writes calls and thoughts is read off what its template writes of them."""

from __future__ import annotations

import json

import pytest

from flexserve.protocol.answer_parts import Arguments, CallBegun
from flexserve.protocol.answer_reader import AnswerReader
from flexserve.protocol.notation import ANY, BARE, HERMES, CallNotation, Notation, Style
from flexserve.testing.notations import NOTATIONS
from flexserve.trusted.text.rendering.jobs import Result
from flexserve.trusted.text.rendering.template import Template

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}CALLS<|end|>{% endfor %}{{ tools }}"
ARGUMENTS = "{{ c.function.arguments | tojson }}"


def written(text: str) -> str:
    """Return what of a template writes `text`, with an id or a type in the place of ANY."""
    parts = " ~ (kind or c.id) ~ ".join(json.dumps(part) for part in text.split(ANY))
    return f"{{{{ {parts} }}}}" if text else ""


def template_of(calls: CallNotation) -> str:
    """Return a template that writes calls in that notation."""
    name, each = "{{ c.function.name }}", "{% for k, v in c.function.arguments.items() %}"
    comma, value = "{{ ', ' if not loop.last }}", "{{ v }}"
    value_close = written(calls.value_close).replace("c.id", "k")
    keyed = f"{written(calls.key_open)}{{{{ k }}}}{written(calls.key_close)}{value}{value_close}"
    quoted = f"{written(calls.quote)}{value}{written(calls.quote)}"
    keys = f'"{calls.name_key}": "{name}", "{calls.arguments_key}": ' if calls.name_key else f'"{name}": '
    body = {
        Style.JSON: f"{{{keys}{ARGUMENTS}}}",
        Style.NAMED: f"{'{{ c.id }}' if calls.numbered else name}{written(calls.middle)}{ARGUMENTS}",
        Style.TAGGED: f"{name}{written(calls.middle)}{each}{keyed}{{% endfor %}}",
        Style.PYTHON: f"{{{{ '[' if loop.first }}}}{name}({each}{{{{ k }}}}=\"{value}\"{comma}{{% endfor %}})"
        "{{ ']' if loop.last else ', ' }}",
        Style.BRACED: f"{name}{{{{ '{{' }}}}{each}{{{{ k }}}}:{quoted}{comma}{{% endfor %}}{{{{ '}}' }}}}",
    }[calls.style]
    between = f"{{% if not loop.last %}}{written(calls.between)}{{% endif %}}"
    one = f"{written(calls.open)}{body}{written(calls.close)}{between}"
    whole = written(calls.begin), written(calls.end)
    if calls.listed:
        one, whole = body + comma, (f"{whole[0]}[", f"]{whole[1]}")
    if calls.style is Style.PYTHON:
        one, whole = body, (written(calls.open), written(calls.close))
    loop = f"{{% for c in m.tool_calls %}}{one}{{% endfor %}}"
    shown = f"{{% if m.tool_calls %}}{whole[0]}{loop}{whole[1]}{{% endif %}}"
    kind = "true" if "string=" in calls.key_close else ""
    return f"{{% set kind = '{kind}' %}}" + TURNS.replace("CALLS", shown)


def look(source: str) -> Result:
    return Template(source).result(None)


CALLS = [
    *(one.calls for one in NOTATIONS if one.calls is not None and one.calls.open != ">>>"),
    HERMES,
]


@pytest.mark.parametrize("calls", [one for one in CALLS if one.open + one.begin])
def test_what_a_template_writes_of_calls_is_read_back_as_these_calls(calls: CallNotation) -> None:
    source = template_of(calls)
    found = look(source).notation
    assert found is not None
    assert found.calls is not None
    assert found.calls.style is calls.style
    made = [("f", {"x": "one"}), ("g", {"x": "two", "y": "three"})]
    turns = [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": f"functions.{name}:{number}" if calls.numbered else f"abcdefgh{number}",
                    "function": {"name": name, "arguments": values},
                }
                for number, (name, values) in enumerate(made)
            ],
        }
    ]
    text = Template(source).result({"messages": turns}).text
    body = text.removeprefix("<|assistant|>").removesuffix("<|end|>")
    reader = AnswerReader(found, "", {"f": {}, "g": {}})
    read: list[tuple[str, str]] = []
    for part in reader.feed(body) + reader.finish():
        if isinstance(part, CallBegun):
            read.append((part.name, ""))
        else:
            assert isinstance(part, Arguments)
            read[-1] = read[-1][0], read[-1][1] + part.text
    assert [(name, json.loads(values)) for name, values in read] == made


@pytest.mark.parametrize(
    ("source", "notation"),
    [
        ("{{ messages }}", Notation()),
        ("{# <|channel|> <|message|> #}{{ tools }}", Notation("", "", harmony=True)),
        ("{{ tools }}{# <tool_call> #}", Notation(calls=HERMES)),
        ("""{{ tools }}{# {"name": NAME, "parameters": {}} #}""", Notation(calls=BARE)),
        ("{{ tools }}{# [THINK] [/THINK] #}", Notation("[THINK]", "[/THINK]")),
        ("{{ messages }}{# <seed:think> </seed:think> #}", Notation("<seed:think>", "</seed:think>")),
        (
            "{{ tools }}{# <|tool_list_start|> #}",
            Notation(calls=CallNotation(Style.PYTHON, open="<|tool_call_start|>", close="<|tool_call_end|>")),
        ),
    ],
)
def test_what_a_template_does_not_write_is_known_by_its_marks(source: str, notation: Notation) -> None:
    assert look(source).notation == notation


def test_a_template_that_wants_ids_or_content_of_a_kind_gets_them() -> None:
    strict = """{% for m in messages %}{% for c in m.tool_calls or [] %}
    {%- if not c.id.startswith('functions.') or m.content is not none %}{{ raise_exception('') }}{% endif -%}
    <c>{{ c.function.name }}<a>{{ c.function.arguments | tojson }}</c>{% endfor %}
    {{- m.content }}{% endfor %}"""
    found = look(strict)
    assert found.shows_calls
    assert found.notation is not None
    assert found.notation.calls is not None
    assert (found.notation.calls.open, found.notation.calls.middle) == ("<c>", "<a>")


@pytest.mark.parametrize(
    "written",
    [
        "{{ c.function.name }}",
        "{{ c.function.arguments | tojson }}{{ c.function.name }}",
        "{{ c.function.name }}{{ c.function.arguments.values() | list }}",
        "{{ 'x' * 600 }}{{ c.function.name }}{{ c.function.arguments | tojson }}",
    ],
)
def test_a_notation_that_cannot_be_made_out_is_none(written: str) -> None:
    source = (
        f"{{% for m in messages %}}{{% for c in m.tool_calls or [] %}}{written}{{% endfor %}}{{% endfor %}}"
    )
    found = look(source).notation
    assert found is not None
    assert found.calls is None


def test_whether_the_system_has_a_place_is_seen() -> None:
    assert look("{{ messages[0].content }}").takes_system
    assert not look("{{ messages[-1].content }}").takes_system
