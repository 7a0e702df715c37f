"""The documents' transcripts, typed by a fresh user: each command prints what its page shows."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hubs import Hub, running_hub
from library import has_secret_memory

from flexserve.testing.transcripts import BY_ROOT, ROOT, SLOW, blocks, differences

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
TINY = ROOT / "models" / "tiny" / "flexserve-tiny.gguf"
REPOSITORY = "bartowski/Llama-3.2-1B-Instruct-GGUF"  # of README.md
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if any(block.runs and block.language != "before" for block in blocks(page.read_text()))
]


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub in whose repository lies the small model, so that README's download takes no network."""
    with running_hub() as hub:
        name, data = "Llama-3.2-1B-Instruct-Q8_0.gguf", TINY.read_bytes()
        hub.answers[f"/api/models/{REPOSITORY}/tree/main?recursive=true"] = [
            {
                "type": "file",
                "path": name,
                "size": len(data),
                "lfs": {"oid": hashlib.sha256(data).hexdigest()},
            }
        ]
        hub.files[f"/{REPOSITORY}/resolve/main/{name}"] = data
        yield hub


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_is_what_is_printed(page: Path, hub: Hub, request: pytest.FixtureRequest) -> None:
    if not has_secret_memory():
        pytest.skip("this machine has no secret memory, and the pages are about it")
    for program in ("curl", "openssl"):
        if f"$ {program} " in page.read_text() and shutil.which(program) is None:
            pytest.skip(f"there is no {program}: apt install {program}")
    marks = {SLOW, *([BY_ROOT] if os.geteuid() == 0 else [])} if request.config.option.slow_pages else set()
    environment = {"HF_ENDPOINT": hub.url}
    with tempfile.TemporaryDirectory(prefix="typed-") as folder:  # pytest's are too long for a socket
        found = differences(page, Path(folder), marks=frozenset(marks), environment=environment)
    assert not found, "\n".join(map(str, found))
