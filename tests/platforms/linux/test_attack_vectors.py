"""The label's sentence on root follows what the kernel says, vector by vector."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexserve.platforms.linux import attack_vectors
from flexserve.platforms.linux.attack_vectors import Vector


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel that offers nothing, in files to be written."""
    for name in ("_YAMA", "_LOCKDOWN", "_MODULES", "_COMMAND_LINE"):
        monkeypatch.setattr(attack_vectors, name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("scope", ["", "0", "1", "2"])
def test_root_gets_in_unless_yama_refuses_everybody(kernel: Path, scope: str):
    if scope:
        (kernel / "_YAMA").write_text(f"{scope}\n")
    there = attack_vectors.assess()
    assert there[Vector.ATTACH].open
    assert there[Vector.WRITE].open
    assert "root gets in" in attack_vectors.describe(there)


def test_yama_at_three_closes_attaching_and_writing(kernel: Path):
    (kernel / "_YAMA").write_text("3\n")
    there = attack_vectors.assess()
    assert not there[Vector.ATTACH].open
    assert not there[Vector.WRITE].open
    assert there[Vector.KEY].open, "a file is a file"
    assert "root's debuggers" in attack_vectors.describe(there)


@pytest.mark.parametrize(
    ("name", "text", "closed"),
    [
        ("_LOCKDOWN", "none [integrity] confidentiality", True),
        ("_LOCKDOWN", "[none] integrity confidentiality", False),
        ("_MODULES", "1", True),
        ("_MODULES", "0", False),
        ("_COMMAND_LINE", "quiet nomodule", True),
    ],
)
def test_modules_are_kept_out_by_lockdown_or_by_a_kernel_that_loads_none(
    kernel: Path, name: str, text: str, closed: bool
):
    (kernel / "_MODULES").write_text("0")
    (kernel / name).write_text(f"{text}\n")
    assert attack_vectors.assess()[Vector.MODULE].open is not closed
