"""Tiny models of any architecture: llama.cpp says what they need."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexserve.testing.architectures import (
    ARCHITECTURES,
    UNMADE,
    UnmakeableError,
    make_model,
    make_models,
)

pytestmark = pytest.mark.engine


def test_models_of_different_kinds_are_made(tmp_path: Path) -> None:
    names = ["llama", "gemma2", "mamba", "bert", "t5"]
    assert make_models(names, tmp_path) == {}
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(names)


def test_the_same_seed_gives_the_same_file_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_model("qwen3", tmp_path / name, seed=seed)
    first, again, other = (tmp_path / name for name in "abc")
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()


def test_what_cannot_be_made_says_why_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(UnmakeableError, match="unknown model architecture"):
        make_model("no-such-architecture", tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_a_loader_that_dies_is_survived(tmp_path: Path) -> None:
    with pytest.raises(UnmakeableError, match="signal"):
        make_model("glm4moe", tmp_path / "model.gguf", parameters={"expert_count": 0})
    assert not list(tmp_path.iterdir())


def test_reasons_are_given_for_known_architectures_only() -> None:
    assert set(UNMADE) < set(ARCHITECTURES)
