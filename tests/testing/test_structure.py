"""The documents that are written from the packages' own words are up to date."""

from pathlib import Path

import pytest

from flexserve.testing import structure

DOCS = Path(__file__).parents[2] / "docs"
HOW = "run python -m flexserve.testing.structure docs"


def test_every_module_is_in_the_table_of_modules() -> None:
    assert (DOCS / "structure.md").read_text() == structure.structure(), HOW


def test_the_threat_model_says_what_each_package_is_trusted_with() -> None:
    text = (DOCS / "threat-model.md").read_text()
    assert structure.with_table(text) == text, HOW


def test_a_document_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="generated"):
        structure.with_table("# Threats")
