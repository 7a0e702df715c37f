"""A real server attests what `flexserve measure` measures of this installation."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from real_server import KEY, Server

from flexserve import interpreter

pytestmark = pytest.mark.engine


def flexserve(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_CONFIG_HOME": str(folder), "FLEXSERVE_API_KEY": KEY}
    command = [sys.executable, "-m", "flexserve.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_server_is_what_was_measured_and_refused_when_one_digest_is_another(
    server: Server, pytestconfig: pytest.Config, tmp_path: Path
):
    policy = tmp_path / "policy.toml"
    platform, _, where = pytestconfig.getoption("platform").partition("-")
    machine = ("--platform", platform, *(("--secure-world", where) if where else ()))
    measured = flexserve("measure", "--json", *machine, "--policy", str(policy), folder=tmp_path)
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
    name = "application" if where == "inside" else "engine"
    digest = shown["measurements"][name]
    policy.write_text(policy.read_text().replace(digest, "0" * len(digest)))
    refused = flexserve(*attest, folder=tmp_path)
    assert f"measurement {name}: expected {'0' * len(digest)}, found {digest}" in refused.stderr


MEASURED = (
    "import importlib, json, sys; from flexserve.attestation import measurement\n"
    "for program in measurement.PROGRAMS: importlib.import_module(program)\n"
    "print(json.dumps([sys.path, [path for _, _, path in measurement._mapped([])]]))"
)


def processes_of(root: int) -> set[int]:
    """Return `root` and all processes below it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def code_of(pid: int) -> set[str]:
    """Return the files of which a process has code mapped."""
    fields = [line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return {each[5] for each in fields if "x" in each[1] and each[5:] and each[5].startswith("/")}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees what a secure process has mapped")
def test_all_code_that_a_secure_worlds_processes_have_mapped_is_measured(server: Server):
    headers = {"Authorization": f"Bearer {KEY}"}
    server.openai().completions.create(model="tiny", prompt="x", max_tokens=2)
    secure = httpx.get(f"{server.url}/models", headers=headers).json()["os"]["secure_pid"]
    command = [sys.executable, *interpreter.OPTIONS[:3], "-c", MEASURED]
    roots, measured = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    folders = tuple(os.path.join(os.path.realpath(root), "") for root in roots if root)
    mapped = set().union(*map(code_of, processes_of(secure)))
    assert {path for path in mapped if "/libc" in path}, "it has the C library mapped at least"
    assert {path for path in mapped if not path.startswith(folders)} <= set(measured)


@pytest.mark.parametrize("nonce", ["", "00", "zz" * 16, "00" * 65])
def test_a_nonce_out_of_its_bounds_is_refused(server: Server, nonce: str):
    answer = httpx.get(
        f"{server.url}/v1/attestation", params={"nonce": nonce}, headers={"Authorization": f"Bearer {KEY}"}
    )
    assert answer.status_code == 400
    assert "nonce" in answer.json()["error"]["message"]
