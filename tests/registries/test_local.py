"""The models that other programs have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flexserve.registries.local import (
    lmstudio_folder,
    lmstudio_models,
    ollama_folder,
    ollama_models,
)

DIGEST = "cd" * 32


def manifest(folder: Path, name: str, digest: str, kind: str = "application/vnd.ollama.image.model") -> None:
    path = folder / "manifests" / "registry.ollama.ai" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    layer = {"mediaType": kind, "digest": f"sha256:{digest}", "size": 3}
    path.write_text(json.dumps({"layers": [layer]}))


def test_ollamas_models_are_found_by_their_manifests(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / f"sha256-{DIGEST}").write_bytes(b"xyz")
    manifest(tmp_path, "library/llama3.2/1b", DIGEST)
    manifest(tmp_path, "me/own/latest", DIGEST)
    manifest(tmp_path, "library/without/blob", "ef" * 32)
    manifest(tmp_path, "library/climbs/latest", "../../../etc/passwd")
    manifest(tmp_path, "library/adapter/latest", DIGEST, "application/vnd.ollama.image.adapter")
    (tmp_path / "manifests/registry.ollama.ai/library/llama3.2/broken").write_text("{")
    found = ollama_models(tmp_path)
    assert [model.name for model in found] == ["llama3.2:1b", "me/own:latest"]
    assert (found[0].path.read_bytes(), found[0].size, found[0].sha256) == (b"xyz", 3, DIGEST)


def test_lm_studios_models_are_found_by_their_folders(tmp_path: Path) -> None:
    folder = tmp_path / "publisher" / "model"
    folder.mkdir(parents=True)
    split = [f"b-0000{part}-of-00002.gguf" for part in (1, 2)]
    for name in ("a-Q4_0.gguf", "mmproj-a.gguf", *split, "c-00001-of-00002.gguf", "notes.txt"):
        (folder / name).write_bytes(b"xyz")
    assert [(model.name, model.size) for model in lmstudio_models(tmp_path)] == [("a-Q4_0", 3), ("b", 6)]


def test_their_folders_are_where_they_keep_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    assert ollama_folder() == tmp_path / ".ollama/models"
    assert lmstudio_folder() == tmp_path / ".lmstudio/models"
    (tmp_path / ".cache/lm-studio/models").mkdir(parents=True)
    assert lmstudio_folder() == tmp_path / ".cache/lm-studio/models"
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "elsewhere"))
    assert ollama_folder() == tmp_path / "elsewhere"
    assert ollama_models(tmp_path / "elsewhere") == lmstudio_models(tmp_path / "elsewhere") == []
