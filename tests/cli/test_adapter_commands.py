"""Adapters on the command line: added to a model, tried with it, shown with it."""

from __future__ import annotations

import json
from pathlib import Path

import gguf as ggml
import pytest
from servers import Cli

from flexserve.harness.adapters import write_adapter
from flexserve.harness.shapes import Shape

SHAPE = Shape("small", "llama", 1, 64, 128, 2, 2, 512, 128)  # of the fixture `gguf`


@pytest.fixture
def base(cli: Cli, gguf: Path) -> str:
    assert cli("add", str(gguf), "--name", "small").exit_code == 0
    return "small"


def test_an_adapter_is_a_model_that_says_whose_it_is(cli: Cli, base: str, tmp_path: Path) -> None:
    write_adapter(tmp_path / "poet.gguf", SHAPE)
    added = cli("add", str(tmp_path / "poet.gguf"), "--adapter-of", base, "--scale", "0.5")
    assert added.exit_code == 0, added.stderr
    assert "adapter of small at scale 0.5" in added.stdout
    shown = json.loads(cli("show", "poet", "--json").stdout)
    assert (shown["adapter_of"]["name"], shown["adapter_of"]["scale"]) == (base, 0.5)
    assert shown["abilities"]["text"], "it was tried"
    assert "adapter of small" in cli("list").stdout
    removed = cli("rm", base, "--yes")
    assert removed.exit_code == 0
    assert "poet" in removed.stdout


def test_an_adapter_that_ends_its_process_is_not_added(cli: Cli, base: str, tmp_path: Path) -> None:
    writer = ggml.GGUFWriter(tmp_path / "bad.gguf", "llama")
    writer.add_type(ggml.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_key_value("adapter.lora.alpha", 8.0, ggml.GGUFValueType.FLOAT64)  # llama.cpp aborts on that
    write_adapter(tmp_path / "good.gguf", SHAPE)
    for tensor in ggml.GGUFReader(tmp_path / "good.gguf").tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    result = cli("add", str(tmp_path / "bad.gguf"), "--adapter-of", base)
    assert result.exit_code == 1
    assert "llama.cpp cannot run bad" in result.stderr
    assert "bad" not in cli("list").stdout


def test_a_scale_without_an_adapter_is_refused(cli: Cli, gguf: Path) -> None:
    result = cli("add", str(gguf), "--scale", "2")
    assert result.exit_code == 2
    assert "--adapter-of" in result.stderr
