"""What references mean: which files a repository or a registry has for them."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from hubs import Hub

from flexserve.errors import CallerError, NormalWorldError
from flexserve.registries import hub as hubs
from flexserve.registries.hub import find
from flexserve.registries.reference import parse_reference

TREE = "/api/models/org/repo/tree/main?recursive=true"
DIGEST = "ab" * 32


def entry(path: str, size: int = 7) -> dict[str, object]:
    return {"type": "file", "path": path, "size": size, "lfs": {"oid": DIGEST, "size": size}}


@pytest.mark.parametrize(
    ("reference", "file"),
    [
        ("hf:org/repo", "x-Q4_K_M.gguf"),
        ("hf:org/repo:q8_0", "x-Q8_0.gguf"),
        ("hf:org/repo:Q4_K", None),  # a word of its own, no part of Q4_K_M
        ("hf:org/repo/x-F16.gguf", "x-F16.gguf"),
        ("hf:org/repo/y.gguf", None),
        ("hf:org/repo:mmproj", None),
    ],
)
def test_a_quantisation_or_a_name_chooses_the_file(
    hub: Hub, client: httpx.Client, reference: str, file: str | None
) -> None:
    names = ("README.md", "mmproj-x-F16.gguf", "x-F16.gguf", "x-Q4_K_M.gguf", "x-Q8_0.gguf")
    hub.answers[TREE] = [entry(name) for name in names]
    if file is None:
        with pytest.raises(CallerError, match="has no") as refused:
            find(parse_reference(reference), client)
        assert "x-Q8_0.gguf" in refused.value.hint
    else:
        (found,) = find(parse_reference(reference), client).files
        assert (found.url, found.size, found.sha256) == (f"{hub.url}/org/repo/resolve/main/{file}", 7, DIGEST)


def test_a_split_model_is_all_its_parts(hub: Hub, client: httpx.Client) -> None:
    hub.answers[TREE] = [entry(f"Q4_0/x-Q4_0-0000{part}-of-00002.gguf") for part in (2, 1)]
    found = find(parse_reference("hf:org/repo:Q4_0"), client)
    assert found.title == "x-Q4_0"
    assert [file.url[-9:] for file in found.files] == ["0002.gguf", "0002.gguf"]
    assert ["00001-of" in file.url for file in found.files] == [True, False]


def test_a_split_model_that_lacks_a_part_is_refused(hub: Hub, client: httpx.Client) -> None:
    hub.answers[TREE] = [entry("x-Q4_0-00001-of-00002.gguf")]
    with pytest.raises(CallerError, match="lacks x-Q4_0-00002-of-00002"):
        find(parse_reference("hf:org/repo"), client)


def test_a_gated_repository_says_what_is_wanted(
    hub: Hub, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/private")
    hub.token = "hf_right"
    with pytest.raises(CallerError, match="private, gated") as refused:
        find(parse_reference("hf:org/repo"), client)
    assert "HF_TOKEN" in refused.value.hint
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(CallerError) as refused:
        find(parse_reference("hf:org/repo"), client)
    assert "licence" in refused.value.hint
    assert "hf_wrong" not in str(refused.value)


def test_the_token_is_found_where_the_hubs_own_tools_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert hubs.hub_token() == ""
    (tmp_path / "token").write_text("hf_kept\n")
    assert hubs.hub_token() == "hf_kept"


def test_an_ollama_name_is_the_layer_that_holds_the_model(
    hub: Hub, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "OLLAMA", hub.url)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{DIGEST}", "size": 9}
    hub.answers["/v2/library/llama3.2/manifests/1b"] = {"layers": [{"mediaType": "x/template"}, layer]}
    found = find(parse_reference("ollama:llama3.2:1b"), client)
    (file,) = found.files
    assert found.title == "llama3.2-1b"
    assert (file.url, file.size, file.sha256) == (
        f"{hub.url}/v2/library/llama3.2/blobs/sha256:{DIGEST}",
        9,
        DIGEST,
    )


@pytest.mark.parametrize(
    "answer", [None, [], {}, {"layers": 3}, {"layers": [{"mediaType": "application/vnd.ollama.image.model"}]}]
)
def test_a_manifest_that_is_none_is_refused(
    hub: Hub, client: httpx.Client, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    monkeypatch.setattr(hubs, "OLLAMA", hub.url)
    hub.answers["/v2/library/x/manifests/latest"] = answer
    with pytest.raises(CallerError, match="not one GGUF"):
        find(parse_reference("ollama:x"), client)


@pytest.mark.parametrize(
    "answer", [None, 3, {"error": "x"}, [3, {"path": 3}, {"path": "x.gguf", "size": "y"}]]
)
def test_a_list_of_files_that_is_none_is_no_fault_of_ours(
    hub: Hub, client: httpx.Client, answer: object
) -> None:
    hub.answers[TREE] = answer
    with pytest.raises(CallerError, match="no GGUF files"):
        find(parse_reference("hf:org/repo"), client)


def test_a_host_that_cannot_be_reached_is_named(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(NormalWorldError, match=r"127\.0\.0\.1:1 cannot be reached") as failed:
        find(parse_reference("hf:org/repo"), client)
    assert failed.value.code == "network_failed"
