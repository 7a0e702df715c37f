"""Libraries of others ask a server that runs in the project's own environment (`make test-clients`)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from calls import PROJECT, Place
from real_server import Server

from flexserve.testing.parrot import write_parrot

# A model that calls a tool where there are any and it has no result yet, and else answers.
TEMPLATE = """\
{% for m in messages %}[{{ m.role }}]{{ m.content or '' }}\
{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}\
{% endfor %}{{ tools }}{% if tools and messages[-1].role != 'tool' %}<|calls|>{% else %}<|says|>{% endif %}"""
CALL = ["<tool_call>", '{"name": "weather", ', '"arguments": ', '{"city": "Paris"}}', "</tool_call>"]
PIECES = ["<|calls|>", *CALL, "</s>", "<|says|>", "It ", "is ", "sunny."]

os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false"}  # nothing else is asked


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Leave all of them out unless somebody asks for them by their mark: their libraries may not be here."""
    return None if "libraries" in config.option.markexpr else True


@pytest.fixture(scope="session")
def place(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server with the models tiny, caller (random weights, knows tools) and agent (see TEMPLATE)."""
    folder = tmp_path_factory.mktemp("libraries")
    python = str(PROJECT / ".venv" / "bin" / "python")
    server = Server(folder, platform=pytestconfig.getoption("platform"), python=python)
    write_parrot(folder / "agent.gguf", PIECES, TEMPLATE, controls=("<|calls|>", "<|says|>"))
    server.store.add(folder / "agent.gguf", "agent", lambda _done, _total: None)
    yield Place(server.url)
    assert server.end() == 0
