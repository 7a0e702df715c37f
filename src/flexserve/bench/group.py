"""A memory cgroup for the length of a measurement: whoever is started in it shares one limit.

Version 2 where its memory controller is, else version 1. Making one needs root.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from flexserve.errors import NormalWorldError

_ROOT = Path("/sys/fs/cgroup")
_ENTER = 'echo $$ > "$0" && exec "$@"'  # the shell enters the group and becomes the command
_PATIENCE = 10.0  # seconds until processes that were killed are gone


class MemoryGroup:
    """A cgroup with a limit on memory; see `memory_group`."""

    def __init__(self, folder: Path, *, version: int, limit: int) -> None:
        self._folder = folder
        self.version = version
        self.limit = limit  # bytes

    def command(self, command: Sequence[str]) -> list[str]:
        """Return the command line that runs `command` inside."""
        return ["/bin/sh", "-c", _ENTER, str(self._folder / "cgroup.procs"), *command]

    def used(self) -> int:
        """Return the bytes charged to it now, cached files included."""
        name = "memory.current" if self.version == 2 else "memory.usage_in_bytes"
        return int((self._folder / name).read_text())

    def clear(self) -> None:
        """Kill whatever is inside, and wait until it is gone."""
        deadline = time.monotonic() + _PATIENCE
        while pids := (self._folder / "cgroup.procs").read_text().split():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            if time.monotonic() > deadline:
                raise NormalWorldError(f"Processes in {self._folder} do not end.", hint="End them.")
            time.sleep(0.05)


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[MemoryGroup]:
    """Make a cgroup that may use `limit` bytes; kill what is left in it, and remove it, at the end.

    Raises NormalWorldError when this machine or this user cannot.
    """
    version, mount = _controller()
    folder = mount / f"flexserve-bench-{secrets.token_hex(4)}"
    try:
        if version == 2:
            (mount / "cgroup.subtree_control").write_text("+memory")
        folder.mkdir()
        (folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")).write_text(str(limit))
        if version == 2 and (folder / "memory.swap.max").exists():
            (folder / "memory.swap.max").write_text("0")
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise NormalWorldError(
            f"No memory cgroup can be made ({error.strerror}).", hint="Run this as root, outside a container."
        ) from None
    group = MemoryGroup(folder, version=version, limit=limit)
    try:
        yield group
    finally:
        group.clear()
        folder.rmdir()


def _controller() -> tuple[int, Path]:
    """Return the version and the mount point of the memory controller."""
    with contextlib.suppress(OSError):
        if "memory" in (_ROOT / "cgroup.controllers").read_text().split():
            return 2, _ROOT
    if (_ROOT / "memory" / "memory.limit_in_bytes").exists():
        return 1, _ROOT / "memory"
    raise NormalWorldError(
        "This machine has no memory cgroups.", hint="Mount /sys/fs/cgroup with the memory controller."
    )
