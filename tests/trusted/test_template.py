"""A template in its sandbox: what it makes of values, and what is told of one that fails."""

from __future__ import annotations

import pytest

from flexserve.trusted.text.rendering.compiling import compile_error, reason
from flexserve.trusted.text.rendering.jobs import Outcome, Result
from flexserve.trusted.text.rendering.template import MAX_RENDERED, Template

VALUES = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% for m in messages %}{{ m.role }}: {{ m['content'] }}{% endfor %}", "user: hello"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "hello"}]'),
        ("{{ {'b': '<é>', 'a': 1} | tojson(sort_keys=true) }}", '{"a": 1, "b": "<é>"}'),
        ("{{ {'a': 1} | tojson(indent=2) }}", '{\n  "a": 1\n}'),
        ("{{ {'a': 1} | tojson(indent=99) | length }}", "26"),
        ("{{ {'a': 1} | tojson(indent=-5) }}", '{\n"a": 1\n}'),
        ("{{ messages | map(attribute='role') | tojson }}", '["user"]'),
        ("{% generation %}{{ messages[0].role }}{% endgeneration %}.", "user."),
        ("{% for m in messages * 3 %}{% if loop.index == 2 %}{% break %}{% endif %}x{% endfor %}", "x"),
        ("{{ strftime_now('%%') }}", "%"),
        ("{{ date_string == strftime_now('%d %b %Y') }}", "True"),
        ("{{ datetime == strftime_now('%b %d %Y') }}", "True"),
    ],
)
def test_a_template_makes_text_of_values(source: str, text: str) -> None:
    assert Template(source).result(VALUES) == Result(Outcome.DONE, text)


@pytest.mark.parametrize(
    ("source", "result"),
    [
        ("{% if %}", Result(Outcome.WRONG, "TemplateSyntaxError")),
        ("{{ 1 / 0 }}", Result(Outcome.WRONG, "ZeroDivisionError")),
        ("{{ x.y.z }}", Result(Outcome.WRONG, "UndefinedError")),
        ("{{ range | tojson }}", Result(Outcome.WRONG, "TypeError")),
        ("{{ messages.__class__.__mro__ }}", Result(Outcome.WRONG, "SecurityError")),
        ("{{ raise_exception(messages[0].content) }}", Result(Outcome.REFUSED)),
        ("{{ raise_exception('No: ' + messages[0].content) }}", Result(Outcome.REFUSED, "No: …")),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", Result(Outcome.LIMITS, "RecursionError")),
        ("{{ range(10 ** 10) | list }}", Result(Outcome.LIMITS, "OverflowError")),
        (
            f"{{% for a in range(5) %}}{{{{ 'a' * {MAX_RENDERED // 4} }}}}{{% endfor %}}",
            Result(Outcome.LIMITS),
        ),
    ],
)
def test_of_a_failure_only_its_type_is_told(source: str, result: Result) -> None:
    assert Template(source).result(VALUES) == result


@pytest.mark.parametrize(
    ("source", "tools", "calls"),
    [
        ("{{ messages }}", False, False),
        ("{% if tools %}{{ tools }}{% endif %}", True, True),
        ("{% set tools = 1 %}{{ tools }}", False, False),
        ("{{ messages[0].tool_calls }}", False, True),
        ("{{ messages[0]['tool_calls'] }}", False, True),
        ("{{ 'tool_calls' in messages[0] }}", False, True),
    ],
)
def test_a_template_says_what_it_has_a_use_for(source: str, tools: bool, calls: bool) -> None:
    found = Template(source).result(None)
    assert (found.outcome, found.takes_tools, found.takes_calls) == (Outcome.DONE, tools, calls)


def test_one_that_does_not_compile_says_so_whatever_is_asked() -> None:
    assert Template("{% if %}").result(None).outcome is Outcome.WRONG


def test_a_sound_grammar_has_no_error() -> None:
    assert compile_error('start: "a"') == ""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (compile_error("start: nothing"), "it is no sound schema, or too complex"),
        ('Unimplemented keys: ["not"] in {"secret": 1}', "'not' cannot be enforced"),
        ('Unimplemented keys: ["a client\'s own"]', "one of its keywords cannot be enforced"),
        ("Unsatisfiable schema: secret", "nothing fits it"),
        ("grammar too large", "it becomes too large a grammar"),
    ],
)
def test_the_reason_against_a_schema_quotes_nothing_of_it(error: str, told: str) -> None:
    assert error
    assert reason(error) == told
