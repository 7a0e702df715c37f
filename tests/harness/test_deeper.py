"""A model with more layers that add nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGUFReader

from flexserve.errors import CallerError
from flexserve.harness.deeper import write_deeper
from flexserve.harness.plain import PlainProcess
from flexserve.harness.shapes import SHAPES
from flexserve.harness.synth import write_synthetic


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deeper") / "source.gguf"
    write_synthetic(path, SHAPES["small-llama"], "q4_0")
    return path


def test_its_new_layers_are_as_large_as_the_others_and_bring_zeros(source: Path, tmp_path: Path) -> None:
    write_deeper(source, tmp_path / "deeper.gguf", 10)
    reader = GGUFReader(tmp_path / "deeper.gguf")
    assert reader.fields["llama.block_count"].contents() == 10
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for name in ("attn_q", "attn_output", "ffn_down"):
        old, new = (tensors[f"blk.{layer}.{name}.weight"] for layer in (1, 9))
        assert old.data.nbytes == new.data.nbytes
        assert new.data.any() == (name == "attn_q")
        assert old.data.any()


@pytest.mark.engine
def test_it_says_the_same_words(source: Path, tmp_path: Path) -> None:
    write_deeper(source, tmp_path / "deeper.gguf", 6)
    said = []
    for path in (source, tmp_path / "deeper.gguf"):
        with PlainProcess(path, 1, 128) as plain:
            said.append(plain.generate("Kato bime wurafo.", 24)["text"])
    assert said[0] == said[1] != ""


def test_fewer_layers_than_it_has_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CallerError, match="4 layers"):
        write_deeper(source, tmp_path / "deeper.gguf", 4)
