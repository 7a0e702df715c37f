"""Each chat template that llama.cpp ships: what it writes of thoughts and calls is read back."""

from __future__ import annotations

from pathlib import Path

import pytest
from weights import FETCHED

from flexserve.testing.template_table import row_of, table, templates_in

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

FOLDER = FETCHED / "templates"
DOCUMENT = Path(__file__).parents[2] / "docs" / "templates.md"


@pytest.mark.parametrize("path", templates_in(FOLDER), ids=lambda path: path.stem)
def test_what_a_template_writes_is_read_back(path: Path) -> None:
    assert row_of(path).failures == []


@pytest.mark.skipif(not FOLDER.exists(), reason="The templates are not here: `make test-real` fetches them.")
def test_the_table_of_templates_is_true() -> None:
    assert DOCUMENT.read_text() == table(FOLDER), (
        f"run python -m flexserve.testing.template_table {FOLDER} {DOCUMENT}"
    )
