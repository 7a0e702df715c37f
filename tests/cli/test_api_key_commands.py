"""api-key add, list, rm: the file of keys from the command line."""

from __future__ import annotations

import json
from pathlib import Path

from servers import Cli

from flexserve.normal.api.keys import Keys
from flexserve.normal.key_file import read_keys


def test_an_added_key_is_printed_once_and_let_in_by_its_hash(cli: Cli, home: Path) -> None:
    made = cli("api-key", "add", "alice", "--rights", "ask,recall", "--requests", "60/m")
    assert made.exit_code == 0
    secret = made.stdout.strip()
    file = home / "config/flexserve/keys"
    assert secret not in file.read_text()
    found = Keys(read_keys(file)).find(secret.encode())
    assert found is not None
    assert found.name == "alice"
    assert "SIGHUP" in made.stderr
    listed = json.loads(cli("api-key", "list", "--json").stdout)
    assert listed == [{"name": "alice", "rights": ["ask", "recall"], "requests": "60/minute", "tokens": None}]
    assert "60/minute" in cli("api-key", "list").stdout


def test_a_removed_key_is_gone(cli: Cli, tmp_path: Path) -> None:
    file = str(tmp_path / "keys")
    for name in ("alice", "bob"):
        cli("api-key", "add", name, "--file", file)
    assert cli("api-key", "rm", "alice", "--file", file).exit_code == 0
    assert [key.name for key in read_keys(Path(file))] == ["bob"]
    refused = cli("api-key", "rm", "alice", "--file", file)
    assert refused.exit_code == 1
    assert "hint: `flexserve api-key list`" in refused.stderr


def test_without_keys_list_says_how_to_make_one(cli: Cli) -> None:
    result = cli("api-key", "list")
    assert result.exit_code == 0
    assert "flexserve api-key add" in result.stdout
