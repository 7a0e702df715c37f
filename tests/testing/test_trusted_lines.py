"""How much code is trusted, and that clients' code is not among it."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexserve.emulator import tools
from flexserve.testing import trusted_lines

CLIENTS = (
    "flexserve.attestation.certificate_reader",
    "flexserve.attestation.kept_receipt",
    "flexserve.attestation.policy",
    "flexserve.attestation.token_reader",
    "flexserve.attestation.verification",
    "flexserve.protocol.sealed_answer_reader",
    "flexserve.protocol.sealed_exchange",
)


@pytest.fixture(scope="module")
def modules() -> dict[str, Path]:
    return trusted_lines.imported()


@pytest.mark.parametrize("part", trusted_lines.PARTS, ids=lambda part: part.folder)
def test_what_is_trusted_can_be_read_in_a_day(part: trusted_lines.Part):
    try:
        tools.require("make", "gcc")
    except tools.MissingToolError as error:
        pytest.skip(error.hint)
    assert 100 < trusted_lines.lines_of(part) <= part.most


def test_the_trusted_side_grew_by_few_lines(modules: dict[str, Path]):
    added = trusted_lines.added(modules)
    assert "flexserve.trusted.sessions.session" in added
    total = sum(trusted_lines.lines_of_code(modules[name].read_text()) for name in added)
    assert 1000 < total <= trusted_lines.MOST


@pytest.mark.parametrize("name", CLIENTS)
def test_a_secure_world_imports_nothing_that_only_clients_run(modules: dict[str, Path], name: str):
    assert name not in modules


def test_blank_lines_comments_and_docstrings_do_not_count():
    source = '"""What it is."""\n\n# why\ndef f():\n    """Do it."""\n    return (1,  # one\n        2)\n'
    assert trusted_lines.lines_of_code(source) == 3
