from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from hubs import Hub, running_hub

from flexserve.registries.download import make_client


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub in place of Hugging Face, for a user without a token."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with make_client() as client:
        yield client
