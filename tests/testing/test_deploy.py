"""What is deployed with FlexServe fits what it does: units for systemd, and the profile of a container."""

from __future__ import annotations

import configparser
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from flexserve import settings
from flexserve.platforms.linux import seccomp

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
CONFINES = {
    *("unshare", "mount", "umount2", "pivot_root", "ptrace", "seccomp"),
    *("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"),
}


def service(unit: Path) -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(strict=False)
    parser.read(unit)
    return parser["Service"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_lets_the_server_drain_lock_memory_and_confine_its_secure_world(unit: Path) -> None:
    said = service(unit)
    program, command, *flags = said["ExecStart"].split()
    assert (Path(program).name, command) == ("flexserve", "serve")
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    drain = settings.load(drain=given["--drain"]).drain
    assert float(said["TimeoutStopSec"]) > drain
    assert said["LimitMEMLOCK"] == "infinity"
    assert "-HUP" in said["ExecReload"]
    allowed = set(said["SystemCallFilter"].split())
    assert CONFINES - {"unshare", "mount", "umount2", "pivot_root", "ptrace"} <= allowed
    assert {"@system-service", "@mount", "@debug", "memfd_secret", "mincore"} <= allowed
    assert {"user", "mnt", "net", "ipc", "uts", "pid"} <= set(said["RestrictNamespaces"].split())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_knows_every_line_of_a_unit(unit: Path, tmp_path: Path) -> None:
    program = tmp_path / "flexserve"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/flexserve/bin/flexserve", str(program)))
    result = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(copy)],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert [line for line in result.stderr.splitlines() if unit.name in line] == []


def test_the_profile_of_a_container_allows_what_the_worlds_call() -> None:
    profile = json.loads((DEPLOY / "seccomp.json").read_text())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    allowed = {name for rule in profile["syscalls"] for name in rule["names"]}
    worlds = {name for text in (seccomp._SERVING, seccomp._RENDERING) for name in text.split()}
    assert worlds | CONFINES | {"memfd_secret", "execve", "clone", "accept4", "listen"} <= allowed
    assert not allowed & {"kexec_load", "bpf", "init_module", "reboot", "open_by_handle_at", "userfaultfd"}
