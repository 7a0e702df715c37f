"""`flexserve attest` and `flexserve measure`: what is verified, and how a refusal is said."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from servers import Cli, ScriptedServer

from flexserve import settings
from flexserve.attestation import measurement
from flexserve.attestation.policy import load_policy
from flexserve.cli import attestation
from flexserve.folders import config_folder
from flexserve.trusted.store import DeviceKey, Store

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


def test_a_policy_of_another_platform_is_said_to_be_one(cli: Cli, policy: Path):
    policy.write_text(f'{ALLOWED}[layers]\nel2 = ["00"]\nel3 = ["00"]\n')
    result = cli("attest", "--policy", str(policy))
    assert result.exit_code == 1
    assert "layer el2: expected to be in the chain, found no such layer" in result.stderr
    assert "--platform" in result.stderr


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


class TestSignedPolicy:
    """A policy that somebody signed counts only as he wrote it."""

    @pytest.fixture
    def signed(self, policy: Path, tmp_path: Path) -> tuple[str, ...]:
        """The arguments for a policy that is signed."""
        key = Ed25519PrivateKey.generate()
        pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / "signer.pem").write_bytes(pem)
        (tmp_path / "policy.toml.sig").write_bytes(key.sign(policy.read_bytes()))
        return "attest", "--policy", str(policy), "--policy-signer", str(tmp_path / "signer.pem")

    def test_it_counts_as_any_other(self, cli: Cli, signed: tuple[str, ...]):
        assert cli(*signed).exit_code == 0

    def test_it_is_refused_when_it_was_changed(self, cli: Cli, signed: tuple[str, ...], policy: Path):
        policy.write_text(ALLOWED + "\n")
        result = cli(*signed)
        assert result.exit_code == 1
        assert "is not that key's signature of it" in result.stderr

    def test_it_is_refused_without_its_signature(self, cli: Cli, signed: tuple[str, ...], tmp_path: Path):
        (tmp_path / "policy.toml.sig").unlink()
        assert "policy.toml.sig cannot be read" in cli(*signed).stderr

    def test_what_is_no_key_is_said(self, cli: Cli, signed: tuple[str, ...], tmp_path: Path):
        (tmp_path / "signer.pem").write_text("no key")
        assert "is no public key of Ed25519" in cli(*signed).stderr

    def test_a_policy_of_the_configuration_has_to_be_signed_as_well(self, cli: Cli, signed: tuple[str, ...]):
        assert "policy.toml cannot be read" in cli("attest", *signed[3:]).stderr


class TestMeasure:
    """The good values of this installation, and the models of the store."""

    @pytest.fixture(autouse=True)
    def sealed(self, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        """The SHA-256 of a model in the store; measuring takes no second here."""
        monkeypatch.setattr(measurement, "reference", lambda: {"flexserve": b"f" * 64})
        here = settings.load()
        store = Store(here.models, DeviceKey.load_or_create(here.device_key))
        return store.add(gguf, "small", lambda _done, _all: None).digest

    def test_it_lists_the_models_of_the_store(self, cli: Cli, sealed: str, gguf: Path):
        assert sealed == hashlib.sha256(gguf.read_bytes()).hexdigest()
        assert f"model small    {sealed}" in cli("measure").stdout
        assert json.loads(cli("measure", "--json").stdout)["models"] == {"small": sealed}

    def test_a_policy_names_them_when_it_is_to(self, cli: Cli, sealed: str, tmp_path: Path):
        path = tmp_path / "written.toml"
        assert cli("measure", "--policy", str(path)).exit_code == 0
        assert load_policy(path).models == []
        assert cli("measure", "--policy", str(path), "--with-models").exit_code == 0
        assert [rule.sha256 for rule in load_policy(path).models] == [sealed]

    def test_on_the_emulated_machine_it_is_of_what_computes_inside_unless_told_otherwise(
        self, cli: Cli, monkeypatch: pytest.MonkeyPatch
    ):
        def inside() -> tuple[dict[str, bytes], dict[str, bytes]]:
            return {"application": b"l" * 64}, {"application": b"a" * 64}

        def beside(platform: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
            return {"world": platform.encode()}, {"engine": b"e" * 64}

        monkeypatch.setattr(attestation, "_inside", inside)
        monkeypatch.setattr(attestation, "_beside", beside)
        machine = ("measure", "--json", "--platform", "trustzone")
        assert set(json.loads(cli(*machine).stdout)["measurements"]) == {"application"}
        host = json.loads(cli(*machine, "--secure-world", "host").stdout)
        assert host["layers"] == {"world": b"trustzone".hex()}
        assert json.loads(cli("measure", "--json").stdout)["layers"] == {"world": b"linux".hex()}
        monkeypatch.setenv("FLEXSERVE_PLATFORM", "trustzone")
        assert set(json.loads(cli("measure", "--json").stdout)["measurements"]) == {"application"}
