"""The table of templates says what works with a template, and what does not."""

from __future__ import annotations

from pathlib import Path

from flexserve.testing.template_table import NONE, WORKS, row_of, table

TURN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}CALLS<|end|>{% endfor %}"
TOOLS = "{{ tools }}{% if add_generation_prompt %}<|assistant|>{% endif %}"
CALL = """{% for c in m.tool_calls or [] %}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>
{% endfor %}"""


def written(folder: Path, source: str) -> Path:
    path = folder / "one.jinja"
    path.write_text(source)
    return path


def test_a_template_that_writes_calls_works(tmp_path: Path) -> None:
    row = row_of(written(tmp_path, TURN.replace("CALLS", CALL) + TOOLS))
    assert (row.style, row.answer, row.thought, row.failures) == ("json", WORKS, NONE, [])
    assert (row.one, row.two, row.forced) == (WORKS, WORKS, WORKS)
    assert "| one | json | yes |" in table(tmp_path)


def test_a_template_that_knows_no_tools_has_them_told(tmp_path: Path) -> None:
    row = row_of(written(tmp_path, TURN.replace("CALLS", "") + "{{ '<|assistant|>' }}"))
    assert (row.style, row.one, row.two, row.forced) == ("told", NONE, NONE, WORKS)


def test_calls_that_cannot_be_read_back_are_said(tmp_path: Path) -> None:
    call = "{{ c.function.arguments | tojson }} {{ c.function.name }}"
    lost = f"{{% for c in m.tool_calls or [] %}}{call}{{% endfor %}}"
    row = row_of(written(tmp_path, TURN.replace("CALLS", lost) + TOOLS))
    assert row.failures == ["one: 0 calls read", "two: 0 calls read"]
