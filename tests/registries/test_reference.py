"""What people write to name a published model."""

from __future__ import annotations

import pytest

from flexserve.errors import CallerError
from flexserve.registries.reference import HubReference, OllamaReference, UrlReference, parse_reference


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("hf:org/repo", HubReference("org/repo", "", "", "main")),
        ("hf:org/repo-1.5-GGUF:Q4_K_M", HubReference("org/repo-1.5-GGUF", "Q4_K_M", "", "main")),
        ("hf:org/repo:Q8_0@v2", HubReference("org/repo", "Q8_0", "", "v2")),
        ("hf:org/repo/sub/x.gguf@refs/pr/1", HubReference("org/repo", "", "sub/x.gguf", "refs/pr/1")),
        ("ollama:llama3.2", OllamaReference("library", "llama3.2", "latest")),
        ("ollama:me/llama:1b-q8_0", OllamaReference("me", "llama", "1b-q8_0")),
        (
            "https://example.org/x.gguf?download=true",
            UrlReference("https://example.org/x.gguf?download=true"),
        ),
    ],
)
def test_a_reference_names_a_model(text: str, meant: object) -> None:
    assert parse_reference(text) == meant


@pytest.mark.parametrize(
    "text",
    [
        "",
        "llama",
        "hf:",
        "hf:org",
        "hf:org/repo/../x",
        "ollama:",
        "ftp://x/y",
        "file:///etc",
    ],
)
def test_what_names_none_is_answered_with_the_forms_there_are(text: str) -> None:
    with pytest.raises(CallerError, match="hf:ORG/REPO") as refused:
        parse_reference(text)
    assert refused.value.code == "bad_reference"
