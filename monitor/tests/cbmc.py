#!/usr/bin/env python3
"""CBMC, the model checker: the one that is installed, or Debian's own, unpacked into a cache.

cbmc.py    prints how to run it; or says why it cannot be had, and what to do, and fails.

Debian 12 has no CBMC, Debian 13 has. Its package comes from the mirror that this machine's apt sources name
for Debian, checked by apt against Debian's archive keys, without root and without a trace in the system: apt
is given a state of its own. CBMC runs with the C library that it was built for, unpacked beside it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SUITE = "trixie"
PACKAGES = ("cbmc", "minisat", "libc6", "libstdc++6", "libgcc-s1", "zlib1g")
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flexserve"
LIMIT = 300  # seconds for a download
APT = """
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "30";
Dir::Etc::SourceList "{folder}/sources.list";
Dir::Etc::SourceParts "{folder}/none";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Log "{folder}/log";
"""


class NoCbmcError(Exception):
    """CBMC cannot be had here; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Cbmc:
    """How to run its programs: `prefix`, then the path of one."""

    prefix: tuple[str, ...]
    programs: Path

    def command(self, program: str, *words: str | Path) -> list[str]:
        """Return the command line that runs `program` (cbmc, goto-cc, goto-instrument) with these words."""
        return [*self.prefix, str(self.programs / program), *map(str, words)]


def find() -> Cbmc:
    """Return the CBMC that is installed, or was unpacked before, or can be fetched. Raises NoCbmcError."""
    installed = shutil.which("cbmc")
    if installed and shutil.which("goto-instrument"):
        return Cbmc((), Path(installed).parent)
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "cbmc.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = CACHE / f"cbmc-{SUITE}"
        if not folder.exists():
            fetch(folder)
    loaders = sorted(folder.glob("usr/lib/*-linux-gnu/ld-linux*.so.*"))
    if not loaders:
        raise NoCbmcError(f"{folder} has no dynamic loader: remove the folder, and try again.")
    libraries = f"{loaders[0].parent}:{folder / 'usr/lib'}"
    return Cbmc((str(loaders[0]), "--library-path", libraries), folder / "usr/bin")


def fetch(target: Path) -> None:
    """Download CBMC and unpack it to `target`, which appears only when it is whole."""
    mirror = mirror_of_debian()
    sys.stderr.write(f"fetching CBMC of Debian's {SUITE} (25 MB, once)\n")
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="cbmc-") as name:
        folder = Path(name)
        for part in ("state/lists/partial", "cache/archives/partial", "log", "debs", "whole"):
            (folder / part).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "sources.list").write_text(f"deb [signed-by={KEYS}] {mirror} {SUITE} main\n")
        architecture = run("dpkg", "--print-architecture").strip()
        (folder / "apt.conf").write_text(APT.format(architecture=architecture, folder=folder))
        apt = ("apt-get", "-q", "-c", str(folder / "apt.conf"))
        run(*apt, "update")
        run(*apt, "download", *PACKAGES, cwd=folder / "debs")
        for package in (folder / "debs").glob("*.deb"):
            run("dpkg-deb", "--extract", str(package), str(folder / "whole"))
        (folder / "whole").rename(target)


def mirror_of_debian() -> str:
    """Return the address that this machine's apt sources have for its own suite of Debian."""
    about = Path("/etc/os-release")
    known = dict(line.split("=", 1) for line in about.read_text().splitlines() if "=" in line)
    missing = [tool for tool in ("apt-get", "dpkg", "dpkg-deb") if shutil.which(tool) is None]
    if known.get("ID") != "debian" or missing:
        raise NoCbmcError("CBMC is not installed: apt-get install cbmc, or whatever this system calls it.")
    if not KEYS.exists():
        raise NoCbmcError(f"{KEYS} is not there: apt-get install debian-archive-keyring.")
    listed = run("apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages")
    lines = [line.partition(" ") for line in listed.splitlines()]
    addresses = {release: address for release, _, address in reversed(lines)}
    codename = known.get("VERSION_CODENAME", "").strip('"')
    if codename not in addresses:
        raise NoCbmcError("This machine's apt sources name no mirror of Debian: add one, or install CBMC.")
    return addresses[codename]


def run(*command: str, cwd: Path | None = None) -> str:
    """Run a program and return what it printed. Raises NoCbmcError with its complaint when it fails."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        raise NoCbmcError(f"{command[0]} did not end within {LIMIT} s: see to the network.") from None
    if done.returncode:
        said = " ".join(line for line in done.stderr.splitlines() if line.startswith(("E:", "W:")))
        hint = "See to the network"
        if "NO_PUBKEY" in said:
            hint = f"apt-get install --only-upgrade debian-archive-keyring brings the keys of {SUITE}"
        raise NoCbmcError(
            f"{' '.join(command[:1])} failed: {said or done.stderr.strip()} {hint}, and try again."
        )
    return done.stdout


if __name__ == "__main__":
    try:
        sys.stdout.write(" ".join(find().command("cbmc")) + "\n")
    except NoCbmcError as error:
        sys.exit(f"no CBMC: {error}")
