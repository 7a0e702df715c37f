"""`flexserve pull` and `flexserve import`, against a hub of this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hubs import Hub, running_hub
from servers import Cli


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, gguf: Path) -> Iterator[Hub]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HOME", raising=False)
    with running_hub() as hub:
        data = gguf.read_bytes()
        large = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}
        entry = {"path": "small-Q8_0.gguf", "size": len(data), "lfs": large}
        hub.answers["/api/models/org/small/tree/main?recursive=true"] = [entry]
        hub.redirects["/org/small/resolve/main/small-Q8_0.gguf"] = f"{hub.url}/blob"
        hub.files["/blob"] = hub.files["/small.gguf"] = data
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the try of what was sealed, which `flexserve add` has tests of."""
    monkeypatch.setattr("flexserve.cli.trial.try_model", lambda *_arguments: "")


@pytest.mark.engine
def test_pull_seals_what_it_downloads_and_tries_it(cli: Cli, hub: Hub, home: Path) -> None:
    done = cli("pull", "hf:org/small")
    assert done.exit_code == 0
    assert "added small-q8_0: llama" in done.stdout
    assert "note: nobody published" not in done.stdout
    shown = json.loads(cli("show", "small-q8_0", "--json").stdout)
    assert shown["sha256"] == hashlib.sha256(hub.files["/blob"]).hexdigest()
    assert shown["abilities"]["text"]
    assert list(home.rglob("*.gguf")) == []


def test_pull_refuses_what_is_not_what_was_published(
    cli: Cli, hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_trial(monkeypatch)
    hub.files["/blob"] = hub.files["/blob"][:-1] + b"\1"
    done = cli("pull", "hf:org/small")
    assert done.exit_code == 1
    assert "is not what it should be" in done.stderr
    assert [path.name for path in home.rglob("*.flex")] == []


def test_pull_takes_a_name_and_a_digest(cli: Cli, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    no_trial(monkeypatch)
    url = f"{hub.url}/small.gguf"
    wrong = cli("pull", url, "--name", "mine", "--sha256", "0" * 64)
    assert "is not what it should be" in wrong.stderr
    right = hashlib.sha256(hub.files["/small.gguf"]).hexdigest()
    assert cli("pull", url, "--name", "mine", "--sha256", right).exit_code == 0
    assert "There is a model named mine already" in cli("pull", url, "--name", "mine").stderr
    assert "nobody published its digest" in cli("pull", url).stdout
    assert "64 hexadecimal digits" in cli("pull", url, "--name", "x", "--sha256", "7").stderr


def test_pull_from_afar_over_http_wants_a_digest(cli: Cli) -> None:
    done = cli("pull", "http://192.0.2.1/x.gguf")
    assert done.exit_code == 1
    assert "--sha256" in done.stderr


def test_an_unfinished_model_is_listed_and_can_be_removed(
    cli: Cli, hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_trial(monkeypatch)
    monkeypatch.setattr("flexserve.registries.download._TRIES", 1)
    hub.break_after = [1 << 30, 1 << 30, 100_000]  # list and header come whole, the model does not
    done = cli("pull", "hf:org/small")
    assert done.exit_code == 1
    assert "goes on where it stopped" in done.stderr
    assert "small-q8_0 is not whole yet" in cli("list").stdout
    assert cli("rm", "small-q8_0", "--yes").exit_code == 0
    assert "not whole" not in cli("list").stdout


def test_import_lists_and_seals_what_ollama_has(
    cli: Cli, gguf: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_trial(monkeypatch)
    data = gguf.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    folder = home / ".ollama" / "models"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / f"sha256-{digest}").write_bytes(data)
    layer = {
        "mediaType": "application/vnd.ollama.image.model",
        "digest": f"sha256:{digest}",
        "size": len(data),
    }
    manifest = folder / "manifests/registry.ollama.ai/library/small/latest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"layers": [layer]}))
    assert "small:latest" in cli("import", "ollama").stdout
    assert "has: small:latest" in cli("import", "ollama", "large").stderr
    assert cli("import", "ollama", "small").exit_code == 0
    assert json.loads(cli("show", "small", "--json").stdout)["sha256"] == digest
    assert cli("import", "elsewhere").exit_code == 2
    assert "no models in" in cli("import", "lmstudio").stdout
