"""The helper that runs templates and compiles grammars: what it survives, and what it tells of it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flexserve.errors import CallerError, InternalError, StoredDataError
from flexserve.platforms.linux.kernel_views import children_of
from flexserve.trusted.sidecar import start_helper
from flexserve.trusted.text.rendering import helper
from flexserve.trusted.text.rendering.renderer import Renderer

SOUND = "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
VALUES = {"messages": [{"role": "user", "content": "hello"}]}
FOR_EVER = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    made = Renderer(start_helper())
    yield made
    made.close()


@pytest.mark.parametrize(
    "source",
    [
        FOR_EVER,
        "{{ 'a' * 999999999 }}",
        "{{ messages[0].content * 999999999 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set n = namespace(x='a') %}{% for i in range(90) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{{ range(10 ** 10) | list }}",
        "{% set x = 9 ** (9 ** 8) %}",
        "{% for a in range(100000) %}{{ messages[0].content * 100 }}{% endfor %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    ],
)
def test_what_takes_too_much_is_the_requests_fault_and_nobody_elses(renderer: Renderer, source: str) -> None:
    with pytest.raises(CallerError) as caught:
        renderer.render(source, VALUES)
    assert caught.value.code == "chat_template_limits"
    assert "hello" not in str(caught.value)
    assert renderer.render(SOUND, VALUES) == "user: hello;"


@pytest.mark.parametrize("source", ["{% if %}", "{{ 1 / 0 }}", "{{ x.y.z }}", "{% include 'a' %}"])
def test_a_template_that_is_wrong_is_bad_stored_data(renderer: Renderer, source: str) -> None:
    with pytest.raises(StoredDataError):
        renderer.render(source, VALUES)


def test_others_are_rendered_while_one_template_does_not_end(renderer: Renderer) -> None:
    ended = threading.Event()

    def stuck() -> None:
        with pytest.raises(CallerError):
            renderer.render(FOR_EVER, VALUES)
        ended.set()

    thread = threading.Thread(target=stuck)
    thread.start()
    for _ in range(5):
        assert renderer.render(SOUND, VALUES) == "user: hello;"
    assert not ended.is_set()
    thread.join()
    assert ended.is_set()


def test_nothing_is_left_of_a_rendering_for_the_next(renderer: Renderer) -> None:
    keeping = "{% set n = cycler('a', 'b') %}{{ n.next() }}{{ messages[0].content }}"
    assert renderer.render(keeping, VALUES) == "ahello"
    assert renderer.render(keeping, {"messages": [{"content": "other"}]}) == "aother"


def test_what_a_template_collects_in_lists_is_gone_with_the_rendering(renderer: Renderer) -> None:
    collecting = "{% set _ = messages.append('x') %}{{ messages | length }}"
    assert [renderer.render(collecting, VALUES) for _ in range(2)] == ["2", "2"]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% generation %}{{ messages[0].role }}{% endgeneration %}.", "user."),
        ("{{ messages | map(attribute='role') | tojson }}", '["user"]'),
        ("{{ {'b': 1, 'a': '<é>'} | tojson(separators=(',', ':'), sort_keys=True) }}", '{"a":"<é>","b":1}'),
        ("{% for m in messages %}{% if loop.last %}{% break %}{% endif %}x{% endfor %}", ""),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
        ("{{ strftime_now('%Y') | int > 2000 }}", "True"),
    ],
)
def test_templates_find_what_they_were_written_for(renderer: Renderer, source: str, text: str) -> None:
    assert renderer.render(source, VALUES) == text


def test_many_at_once_are_all_answered_with_their_own(renderer: Renderer) -> None:
    def render(number: int) -> str:
        return renderer.render(SOUND, {"messages": [{"role": "user", "content": str(number)}]})

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(render, range(40))) == [f"user: {number};" for number in range(40)]


def test_more_templates_than_are_kept_are_compiled_again(renderer: Renderer) -> None:
    for _ in range(2):
        for number in range(helper._MOST_TEMPLATES + 2):
            assert renderer.render(f"{number}{SOUND}", VALUES) == f"{number}user: hello;"


def test_long_conversations_come_through(renderer: Renderer) -> None:
    text = "é" * 1_000_000
    assert renderer.render("{{ messages[0].content }}", {"messages": [{"content": text}]}) == text


def test_a_schema_that_takes_too_long_to_compile_is_refused(renderer: Renderer) -> None:
    options = '%llguidance {"no_forcing": true}'
    with pytest.raises(CallerError) as caught:
        renderer.compile(f'{options}\nstart: %json {{"type": "integer", "multipleOf": 1234567}}\n')
    assert caught.value.code == "schema_unsupported"
    renderer.compile(f'{options}\nstart: %json {{"type": "integer", "multipleOf": 12}}\n')


def facts_of(pid: int) -> dict[str, str]:
    status = Path(f"/proc/{pid}/status").read_text()
    return dict(line.split(":", 1) for line in status.splitlines() if ":" in line)


def helper_of(renderer: Renderer) -> int:
    """Return the helper's process: the first of a namespace, where there is one, behind the one started."""
    children = [pid for pid in children_of(renderer.pid) if facts_of(pid)["NSpid"].split()[-1] == "1"]
    return children[0] if children else renderer.pid


def test_the_helper_has_no_file_and_no_capability(renderer: Renderer) -> None:
    renderer.render(SOUND, VALUES)
    facts = facts_of(helper_of(renderer))
    assert facts["Seccomp"].strip() == "2"
    locking_memory = 1 << 14
    assert int(facts["CapEff"], 16) & ~locking_memory == 0
    if os.geteuid() == 0:
        folder = Path(f"/proc/{helper_of(renderer)}/fd")
        links = [os.readlink(fd) for fd in folder.iterdir() if int(fd.name) > 2]
        assert not [link for link in links if link.startswith("/")]


def test_a_helper_that_is_gone_is_told() -> None:
    gone = threading.Event()
    renderer = Renderer(start_helper(), gone.set)
    assert renderer.render(SOUND, VALUES)
    os.kill(renderer.pid, 9)
    assert gone.wait(timeout=60)
    with pytest.raises(InternalError):
        renderer.render(SOUND, VALUES)
    renderer.close()


def test_the_processes_of_a_helper_end_with_it() -> None:
    renderer = Renderer(start_helper())
    renderer.render(SOUND, VALUES)
    children = children_of(helper_of(renderer))
    assert children
    renderer.close()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)
