"""`flexserve attest` and `flexserve measure`: what is verified, and how a refusal is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from servers import Cli, ScriptedServer

from flexserve.folders import config_folder

ALLOWED = 'emulated = "allow"\n'

pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(ALLOWED)
    return path


def test_an_emulated_root_is_refused_with_the_line_that_allows_it(cli: Cli):
    result = cli("attest")
    assert result.exit_code == 1
    assert "debug status: expected disabled" in result.stderr
    assert 'emulated = "allow"' in result.stderr


def test_what_was_verified_is_shown_with_what_nobody_checked(cli: Cli, policy: Path):
    result = cli("attest", "--policy", str(policy))
    assert result.exit_code == 0
    assert "first seen, and pinned" in result.stdout
    assert "script" in result.stdout
    assert "measurement script" in result.stderr


def test_json_names_every_field(cli: Cli, policy: Path):
    shown = json.loads(cli("attest", "--json", "--policy", str(policy)).stdout)
    assert shown["debug"] is True
    assert shown["measurements"]["script"] == "73" * 64
    assert shown["models"] == [{"sha256": "ab" * 32, "signer": "", "generation": 0}]
    assert shown["layers"][-1]["code"] == shown["world"]


def test_another_root_than_at_first_use_is_refused(cli: Cli, policy: Path):
    shown = json.loads(cli("attest", "--json", "--policy", str(policy)).stdout)
    known = config_folder() / "known-roots"
    known.write_text(known.read_text().replace(shown["root"], "00" * 32))
    result = cli("attest", "--policy", str(policy))
    assert result.exit_code == 1
    assert f"root: expected {'00' * 32}, as at first use, found {shown['root']}" in result.stderr


@pytest.mark.parametrize(
    ("lines", "field"),
    [
        (f'[measurements]\nscript = ["{"00" * 64}"]\n', "measurement script"),
        ('[layers]\nel2 = ["00"]\n', "layer el2"),
        (f'[[models]]\nsha256 = "{"cd" * 32}"\n', "model"),
    ],
)
def test_a_refusal_names_the_field_in_json_too(cli: Cli, policy: Path, lines: str, field: str):
    policy.write_text(ALLOWED + lines)
    result = cli("attest", "--json", "--policy", str(policy))
    assert result.exit_code == 1
    error = json.loads(result.stderr)["error"]
    assert error["code"] == "attestation_refused"
    assert f"{field}: expected" in error["message"]


def test_the_policy_beside_the_configuration_counts_unless_another_is_named(cli: Cli):
    config_folder().mkdir(parents=True, exist_ok=True)
    usual = config_folder() / "policy.toml"
    usual.write_text(ALLOWED)
    assert cli("attest").exit_code == 0
    usual.write_text('colour = "green"\n')
    result = cli("attest")
    assert result.exit_code == 1
    assert "not clear" in result.stderr


def test_a_server_that_changes_the_token_on_its_way_is_refused(
    cli: Cli, policy: Path, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
):
    from flexserve.testing.scripted_world import FACTS, IDENTITY
    from flexserve.trusted.identity.identity import Identity

    replayed = IDENTITY.attest(b"another nonce", FACTS)
    monkeypatch.setattr(Identity, "attest", lambda *_: replayed)
    result = cli("attest", "--policy", str(policy))
    assert result.exit_code == 1
    assert "nonce: expected" in result.stderr
