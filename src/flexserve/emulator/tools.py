"""The programs of others that the build needs, and the command that brings a missing one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from flexserve.errors import InternalError, NormalWorldError

PACKAGES: dict[str, str] = {  # program → Debian package
    "aarch64-linux-gnu-ar": "binutils-aarch64-linux-gnu",
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    "aarch64-linux-gnu-objcopy": "binutils-aarch64-linux-gnu",
    "aarch64-linux-gnu-readelf": "binutils-aarch64-linux-gnu",
    "aarch64-linux-gnu-strip": "binutils-aarch64-linux-gnu",
    "apt-cache": "apt",
    "apt-get": "apt",
    "dpkg": "dpkg",
    "dpkg-deb": "dpkg",
    "dtc": "device-tree-compiler",
    "make": "make",
    "gcc": "gcc",
    "qemu-aarch64": "qemu-user",
    "qemu-system-aarch64": "qemu-system-arm",
}
_LAST_WORDS = 15  # lines of what a failed program said


class MissingToolError(NormalWorldError):
    """A program is not installed; the hint is the command that installs it."""

    default_code = "tool_missing"


def require(*programs: str) -> None:
    """Raise MissingToolError, naming every missing one of `programs`, unless all are there."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        packages = sorted({word for program in missing for word in PACKAGES[program].split()})
        raise MissingToolError(
            f"Not installed: {', '.join(missing)}.", hint=f"Run `apt-get install {' '.join(packages)}`."
        )


def run(
    *command: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    seconds: float = 600,
) -> str:
    """Run a program and return what it printed. Raises InternalError with its last words when it fails."""
    words: Sequence[str] = [str(word) for word in command]
    require(words[0])
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InternalError(f"{words[0]} did not end within {seconds:.0f} s.", hint="Run it again.") from None
    if done.returncode:
        said = "\n  ".join(["", *(done.stdout + done.stderr).splitlines()[-_LAST_WORDS:]])
        raise InternalError(f"`{' '.join(words)}` failed:{said}\n", code="build_failed")
    return done.stdout
