"""add, list, show, verify, rm."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from servers import Cli

from flexserve.testing.architectures import make_models
from flexserve.trusted.store import key_export
from flexserve.trusted.store.keys import DeviceKey

LISTED = {
    "name", "architecture", "parameters", "quantization", "context_length", "size",
    "created", "sha256", "model_id", "adapter_of", "abilities", "damaged", "vendor",
}  # fmt: skip


@pytest.fixture(scope="module")
def first_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `sealed` copies into each home, once a test had it made."""
    return tmp_path_factory.mktemp("first")


@pytest.fixture
def sealed(cli: Cli, gguf: Path, home: Path, first_home: Path) -> Path:
    """The file of the sealed model "small", in a store of the test's own."""
    key_and_store = (Path("config/flexserve"), Path("data/flexserve"))
    if not any(first_home.iterdir()):
        assert cli("add", str(gguf), "--name", "small").exit_code == 0
        for each in key_and_store:
            shutil.copytree(home / each, first_home / each)
    else:
        for each in key_and_store:
            shutil.copytree(first_home / each, home / each)
    return home / "data/flexserve/models/models/small.flex"


def test_add_seals_under_a_name_made_from_the_files(cli: Cli, gguf: Path) -> None:
    result = cli("add", str(gguf))
    assert result.exit_code == 0
    assert "added small-model: llama" in result.stdout
    assert "100 %" in result.stderr


def test_add_says_where_the_key_is_and_that_the_file_is_still_in_clear(
    cli: Cli, gguf: Path, home: Path
) -> None:
    result = cli("add", str(gguf))
    assert str(home / "config/flexserve/device.key") in result.stdout
    assert f"{gguf} is still there in clear" in result.stdout


def test_add_as_json_describes_the_model_and_says_nothing_else(cli: Cli, gguf: Path, home: Path) -> None:
    result = cli("add", str(gguf), "--name", "small", "--json")
    added = json.loads(result.stdout)
    assert added["name"] == "small"
    assert added["size"] == gguf.stat().st_size
    assert added["device_key"] == str(home / "config/flexserve/device.key")
    assert result.stderr == ""


def test_a_name_can_be_used_once(cli: Cli, gguf: Path, sealed: Path) -> None:
    result = cli("add", str(gguf), "--name", "small")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "error: There is a model named small already.\nhint: Remove it" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_file_that_is_no_model_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "notes.gguf").write_text("not a model")
    result = cli("add", str(tmp_path / "notes.gguf"))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


def test_a_model_that_ends_its_process_is_not_added(cli: Cli, tmp_path: Path) -> None:
    assert make_models(["chameleon"], tmp_path) == {}  # llama.cpp misses a tensor too late
    result = cli("add", str(tmp_path / "chameleon.gguf"))
    assert result.exit_code == 1
    assert "llama.cpp cannot run chameleon: The secure world was ended by SIG" in result.stderr
    assert json.loads(cli("list", "--json").stdout) == {"models": []}


def test_what_is_not_there_is_said_before_anybody_is_asked(cli: Cli) -> None:
    result = cli("rm", "nothere")
    assert result.exit_code == 1
    assert "no model named 'nothere'" in result.stderr


def test_an_empty_store_is_a_listing_too(cli: Cli) -> None:
    assert "flexserve add" in cli("list").stdout
    assert json.loads(cli("list", "--json").stdout) == {"models": []}


def test_list_as_json_has_every_fact_and_no_key_material(cli: Cli, sealed: Path) -> None:
    (model,) = json.loads(cli("list", "--json").stdout)["models"]
    assert set(model) == LISTED
    assert model["damaged"] is None


def test_list_shows_one_line_per_model(cli: Cli, gguf: Path, sealed: Path) -> None:
    cli("add", str(gguf), "--name", "other")
    _, *rows = cli("list").stdout.splitlines()
    assert [row.split()[0] for row in rows] == ["other", "small"]


def test_show_says_where_a_model_lies(cli: Cli, sealed: Path) -> None:
    assert str(sealed) in cli("show", "small").stdout
    shown = json.loads(cli("show", "small", "--json").stdout)
    assert shown["path"] == str(sealed)
    assert len(shown["images"]) == 1  # made when the model was tried
    assert (shown["served_context"], shown["served_kv"]) == (shown["context_length"], "f16")
    assert (shown["served_shift"], shown["served_draft"]) == (False, None)
    able = shown["abilities"]
    assert (able["text"], able["vectors"], able["tools"]) == (True, True, "none")
    assert "abilities        text, vectors\n" in cli("show", "small").stdout


def test_an_unknown_model_is_an_error_in_words_and_in_json(cli: Cli, sealed: Path) -> None:
    words, as_json = cli("show", "smal"), cli("show", "smal", "--json")
    assert (words.exit_code, as_json.exit_code) == (1, 1)
    assert words.stderr == "error: There is no model named 'smal'.\nhint: The store has: small.\n"
    assert json.loads(as_json.stderr) == {
        "error": {
            "code": "model_not_found",
            "message": "There is no model named 'smal'.",
            "hint": "The store has: small.",
            "blame": "caller",
        }
    }
    assert words.stdout == as_json.stdout == ""


def test_verify_finds_a_sound_model_sound(cli: Cli, sealed: Path) -> None:
    result = cli("verify", "small")
    assert result.exit_code == 0
    assert "small: sound" in result.stdout


def test_verify_finds_one_flipped_bit_among_all_models(cli: Cli, gguf: Path, sealed: Path) -> None:
    cli("add", str(gguf), "--name", "other")
    data = bytearray(sealed.read_bytes())
    data[-1000] ^= 1
    sealed.write_bytes(data)
    result = cli("verify", "--all", "--json")
    assert result.exit_code == 1
    found = {model["name"]: model for model in json.loads(result.stdout)["models"]}
    assert found["other"]["ok"]
    assert not found["small"]["ok"]
    assert found["small"]["error"]["blame"] == "stored_data"
    assert "NOT SOUND" in cli("verify", "small").stdout


def test_list_warns_of_a_model_whose_label_was_changed(cli: Cli, sealed: Path) -> None:
    data = bytearray(sealed.read_bytes())
    data[40] ^= 1
    sealed.write_bytes(data)
    assert "small cannot be used" in cli("list").stderr
    (model,) = json.loads(cli("list", "--json").stdout)["models"]
    assert model["damaged"]["code"] == "stored_data_bad"


@pytest.mark.parametrize("arguments", [(), ("small", "--all")])
def test_verify_takes_a_model_or_all(cli: Cli, arguments: tuple[str, ...]) -> None:
    result = cli("verify", *arguments)
    assert result.exit_code == 2
    assert "--all" in result.stderr


def test_rm_removes_only_when_told_so(cli: Cli, sealed: Path) -> None:
    refused = cli("rm", "small", stdin="y\n")  # no terminal: whatever is piped in is no consent
    assert refused.exit_code == 1
    assert "--yes" in refused.stderr
    assert sealed.exists()
    assert cli("rm", "small", "--yes").exit_code == 0
    assert not sealed.exists()
    assert cli("rm", "small", "--yes").exit_code == 1


@pytest.mark.parametrize(("answer", "kept"), [("n", True), ("y", False), ("", True)])
def test_rm_asks_on_a_terminal(sealed: Path, answer: str, kept: bool) -> None:
    terminal, inside = pty.openpty()
    os.write(terminal, f"{answer}\n".encode())
    command = [sys.executable, "-m", "flexserve.cli", "rm", "small"]
    done = subprocess.run(command, stdin=inside, capture_output=True, text=True, check=True, timeout=30)
    os.close(terminal)
    os.close(inside)
    assert "Remove small? [y/N]" in done.stdout
    assert sealed.exists() == kept


def test_a_lost_key_is_not_silently_replaced(cli: Cli, sealed: Path, home: Path) -> None:
    key = home / "config/flexserve/device.key"
    key.unlink()
    result = cli("list", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stderr)["error"]["code"] == "device_key_missing"
    assert not key.exists()


def test_another_store_and_key_can_be_named(cli: Cli, gguf: Path, tmp_path: Path, home: Path) -> None:
    where = ("--models", str(tmp_path / "elsewhere"), "--device-key", str(tmp_path / "keys/key"))
    assert cli("add", str(gguf), "--name", "small", *where).exit_code == 0
    assert "small" in cli("list", *where).stdout
    assert (tmp_path / "keys/key").exists()
    assert not (home / "config/flexserve/device.key").exists()


def test_du_shows_what_each_model_takes_and_gc_frees_what_can_be_made_again(
    cli: Cli, gguf: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flexserve.cli.trial.try_model", lambda *_arguments: "")
    assert cli("add", str(gguf), "--name", "small").exit_code == 0
    store = next(home.rglob("small.flex")).parent.parent
    model_id = json.loads(cli("show", "small", "--json").stdout)["model_id"]
    made = [store / "images" / f"{model_id}-x.img", store / "kv" / f"{model_id}-x.kv"]
    made.append(store / "models" / "later.part")
    for path in made:
        path.write_bytes(bytes(8192))
    rows = {row.pop("name"): row for row in json.loads(cli("du", "--json").stdout)["models"]}
    assert rows["small"]["sealed"] >= gguf.stat().st_size
    assert (rows["small"]["images"], rows["small"]["kv"], rows["later"]["unfinished"]) == (8192, 8192, 8192)
    assert "in all" in cli("du").stdout
    assert cli("gc").stdout == "0 B of disk freed\n"
    for option, path in zip(("--images", "--kv", "--unfinished"), made, strict=True):
        assert cli("gc", option).stdout == "8.0 KiB of disk freed\n"
        assert not path.exists()
    assert cli("verify", "small").exit_code == 0


def test_a_device_key_is_exported_under_a_passphrase_and_taken_over(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_export, "_MEMORY", 64)
    key = DeviceKey.load_or_create(tmp_path / "device.key")
    backup, there = str(tmp_path / "backup"), str(tmp_path / "there.key")
    asked = "correct horse battery staple\n"
    exported = cli("key", "export", backup, "--device-key", str(tmp_path / "device.key"), stdin=asked)
    assert exported.exit_code == 0
    assert cli("key", "import", backup, "--device-key", there, stdin="another passphrase\n").exit_code == 1
    taken = cli("key", "import", backup, "--device-key", there, stdin=asked)
    assert key.identity[:16] in taken.stdout
    assert DeviceKey.load(Path(there)).identity == key.identity
