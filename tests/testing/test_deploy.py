"""What is deployed with FlexServe fits what it does: units for systemd, and the profile of a container."""

from __future__ import annotations

import configparser
import datetime
import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from flexserve import settings
from flexserve.platforms.linux import seccomp
from flexserve.testing.transcripts import ROOT, blocks

DEPLOY, PAGE = ROOT / "deploy", ROOT / "docs" / "operate.md"
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


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_the_unit_is_as_exposed_as_its_page_says() -> None:
    said = re.search(r"calls its exposure (\d\.\d)", PAGE.read_text())
    assert said is not None
    command = ["systemd-analyze", "security", "--offline=true", str(DEPLOY / "flexserve.service")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "Overall exposure" not in result.stdout:
        pytest.skip(f"this systemd looks at no unit offline: {result.stderr.strip()}")
    assert f"flexserve.service: {said[1]} " in result.stdout


def test_a_proxy_takes_the_configuration_of_the_page(tmp_path: Path) -> None:
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("there is no nginx: apt install nginx-light")
    (block,) = (block.text for block in blocks(PAGE.read_text()) if block.language == "nginx")
    certificate, key = self_signed("models.example")
    (tmp_path / "models.example.pem").write_bytes(certificate)
    (tmp_path / "models.example.key").write_bytes(key)
    with socket.socket() as free:  # only root may listen at 443
        free.bind(("127.0.0.1", 0))
        server = block.replace("listen 443", f"listen 127.0.0.1:{free.getsockname()[1]}")
    server = server.replace("/etc/ssl", str(tmp_path))
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(
        f"pid {tmp_path}/pid; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {tmp_path}/body; proxy_temp_path {tmp_path}/proxy;\n"
        f"fastcgi_temp_path {tmp_path}/a; uwsgi_temp_path {tmp_path}/b; scgi_temp_path {tmp_path}/c;\n"
        f"{server} }}"
    )
    result = subprocess.run(
        [program, "-t", "-e", "stderr", "-p", str(tmp_path), "-c", str(configuration)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "[warn]" not in result.stderr


def self_signed(name: str) -> tuple[bytes, bytes]:
    """Return a certificate for `name` and its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    title = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(title, title, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def test_the_profile_of_a_container_allows_what_the_worlds_call() -> None:
    profile = json.loads((DEPLOY / "seccomp.json").read_text())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    allowed = {name for rule in profile["syscalls"] for name in rule["names"]}
    worlds = {name for text in (seccomp._SERVING, seccomp._RENDERING) for name in text.split()}
    assert worlds | CONFINES | {"memfd_secret", "execve", "clone", "accept4", "listen"} <= allowed
    assert not allowed & {"kexec_load", "bpf", "init_module", "reboot", "open_by_handle_at", "userfaultfd"}
