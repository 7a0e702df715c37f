"""What the table of architectures says of a model is what becomes of it in a real secure world.

FAMILIES=all pytest tests/e2e/test_architecture_table.py       every row
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from flexserve.testing.architecture_table import outcomes
from flexserve.testing.architectures import ARCHITECTURES

TABLE = Path(__file__).parents[2] / "docs/architectures.md"
SAMPLE = ("llama", "gemma3", "qwen3moe", "mamba", "rwkv7", "bert", "chameleon", "clip")

pytestmark = pytest.mark.engine


def rows() -> dict[str, str]:
    return dict(re.findall(r"^\| ([\w.-]+) \| (.+) \|$", TABLE.read_text(), re.MULTILINE))


def test_each_architecture_has_a_row() -> None:
    assert [name for name in rows() if name != "Architecture"] == list(ARCHITECTURES)


@pytest.mark.timeout(3600)
def test_what_becomes_of_a_model_is_what_its_row_says() -> None:
    names = ARCHITECTURES if os.environ.get("FAMILIES") == "all" else SAMPLE
    found = dict(outcomes(names))
    assert {name: told for name, told in rows().items() if name in found} == found
