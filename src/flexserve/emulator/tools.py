"""The programs of others that the build needs, and the command that brings a missing one."""

from __future__ import annotations

import collections
import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from flexserve.errors import InternalError, NormalWorldError
from flexserve.platforms.linux import parent_death

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
    missing = [program for program in dict.fromkeys(programs) if shutil.which(program) is None]
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
        raise _failed(words, (done.stdout + done.stderr).splitlines())
    return done.stdout


def follow(*command: str | Path, heard: Callable[[str], None], seconds: float) -> None:
    """Run a program that takes minutes; `heard` is told each line that it prints, when it does.

    Whatever ends the call, Ctrl-C or the end of its thread, asks the program and all that it started to end
    (SIGTERM): `make` then removes what is half made. Raises as `run`.
    """
    words = [str(word) for word in command]
    require(words[0])
    last: collections.deque[str] = collections.deque(maxlen=_LAST_WORDS)
    with subprocess.Popen(
        parent_death.command(*words, by=signal.SIGTERM),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
    ) as process:
        assert process.stdout is not None
        late = threading.Timer(seconds, _end, [process])
        late.start()
        try:
            for line in process.stdout:
                last.append(line.rstrip())
                heard(line)
            status = process.wait()
        except BaseException:
            _end(process)
            process.wait()
            raise
        finally:
            is_late = not late.is_alive()
            late.cancel()
    if is_late:
        raise InternalError(f"{words[0]} did not end within {seconds:.0f} s.", hint="Run it again.")
    if status:
        raise _failed(words, last)


def _end(process: subprocess.Popen[str]) -> None:
    """Ask a process and all that it started to end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)


def _failed(words: Sequence[str], printed: Iterable[str]) -> InternalError:
    said = "\n  ".join(["", *list(printed)[-_LAST_WORDS:]])
    return InternalError(f"`{' '.join(words)}` failed:{said}\n", code="build_failed")
