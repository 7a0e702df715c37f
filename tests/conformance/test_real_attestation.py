"""A real server attests what `flexserve measure` measures of this installation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from real_server import KEY, Server

pytestmark = pytest.mark.engine


def flexserve(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_CONFIG_HOME": str(folder), "FLEXSERVE_API_KEY": KEY}
    command = [sys.executable, "-m", "flexserve.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_server_is_what_was_measured_and_refused_when_one_digest_is_another(
    server: Server, pytestconfig: pytest.Config, tmp_path: Path
):
    policy = tmp_path / "policy.toml"
    measure = ("measure", "--json", "--platform", pytestconfig.getoption("platform"))
    measured = flexserve(*measure, "--policy", str(policy), folder=tmp_path)
    assert measured.returncode == 0, measured.stderr
    attest = ("attest", "--json", "--policy", str(policy), "--socket", str(server.unix))
    refused = flexserve(*attest, folder=tmp_path)
    assert "debug status" in refused.stderr
    policy.write_text(policy.read_text().replace('emulated = "refuse"', 'emulated = "allow"'))
    good = flexserve(*attest, folder=tmp_path)
    assert good.returncode == 0, good.stderr
    shown = json.loads(good.stdout)
    assert shown["measurements"] == json.loads(measured.stdout)["measurements"]
    assert shown["unchecked"] == ["root", "models"]
    engine = shown["measurements"]["engine"]
    policy.write_text(policy.read_text().replace(engine, "0" * len(engine)))
    refused = flexserve(*attest, folder=tmp_path)
    assert f"measurement engine: expected {'0' * len(engine)}, found {engine}" in refused.stderr


@pytest.mark.parametrize("nonce", ["", "00", "zz" * 16, "00" * 65])
def test_a_nonce_out_of_its_bounds_is_refused(server: Server, nonce: str):
    answer = httpx.get(
        f"{server.url}/v1/attestation", params={"nonce": nonce}, headers={"Authorization": f"Bearer {KEY}"}
    )
    assert answer.status_code == 400
    assert "nonce" in answer.json()["error"]["message"]
