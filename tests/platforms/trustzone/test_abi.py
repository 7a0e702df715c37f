"""The monitor's interface: one description, and everything made from it agrees."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from flexserve.platforms.trustzone import abi
from flexserve.trusted.memory.ownership import TRANSITIONS, PageEvent, PageState

ROOT = Path(__file__).resolve().parents[3]
GENERATOR = ROOT / "abi" / "generate.py"


@pytest.fixture
def description(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that reads it."""
    monkeypatch.syspath_prepend(GENERATOR.parent)
    return importlib.import_module("description")


def test_what_is_committed_is_what_the_description_says():
    checked = subprocess.run([sys.executable, str(GENERATOR), "--check"], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr.decode()


def test_the_monitor_and_the_secure_world_share_one_ownership_table():
    ours = {(old.name, event.name): new.name for (old, event), new in TRANSITIONS.items()}
    theirs = {(old.name, event): new.name for (old, event), new in abi.TRANSITIONS.items()}
    assert ours == theirs
    assert {state.name: state.value for state in PageState}.items() <= {
        state.name: state.value for state in abi.PageState
    }.items()
    assert {event.name for event in PageEvent} == {event for _, event in abi.TRANSITIONS}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('value = 1\ndoc = "taken', 'value = 0\ndoc = "taken'),
        ('to = "GRANTED"', 'to = "LIMBO"'),
        ("offset = 64", "offset = 44"),
        ("slots = 4096", "slots = 4095"),
        ("number = 0x80", "number = 14"),
    ],
    ids=[
        "two states with one number",
        "an unknown state",
        "overlapping fields",
        "slots that do not wrap",
        "RUN is another call",
    ],
)
def test_a_description_that_contradicts_itself_is_refused(
    description: ModuleType, tmp_path: Path, old: str, new: str
):
    text = (ROOT / "abi" / "flex.toml").read_text()
    assert old in text
    broken = tmp_path / "flex.toml"
    broken.write_text(text.replace(old, new, 1))
    with pytest.raises(description.AbiError):
        description.load(broken)
