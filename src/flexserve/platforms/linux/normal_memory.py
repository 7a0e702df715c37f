"""What Linux says about memory: the NormalMemory port over /proc and the memory cgroup.

A server inside a container may use less than the machine has: the tightest memory limit on the
way from this process's cgroup to the root bounds both `total` and `available`. Page cache that
the kernel would drop first (inactive_file) counts as available there, as it does in MemAvailable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from flexserve.errors import NormalWorldError
from flexserve.platforms.ports import MemorySample

_MAX_FILE = 64 << 10  # bytes read of any of these files; memory.stat, the longest, has about 2 KiB
_UNLIMITED = 1 << 60  # bytes; cgroup v1 writes "no limit" as a number near 2^63
_AVG10 = re.compile(r"^some avg10=(\d{1,3}\.\d+) ", re.MULTILINE)


class LinuxNormalMemory:
    """The memory of this machine, or of the cgroup this process lives in.

    `root` is where /proc and /sys are found: "/" but in tests. Reads a handful of small files
    per call (some 100 µs) and keeps no state that could grow.
    """

    def __init__(self, *, root: Path = Path("/")) -> None:
        self._root = root
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._cgroups = list(_limiting_cgroups(root))

    def sample(self) -> MemorySample:
        """Return the state of memory now. Raises NormalWorldError when the OS does not tell."""
        fields = _fields(_read(self._root / "proc/meminfo"), scale=1024)
        try:
            total, available = fields["MemTotal"], fields["MemAvailable"]
        except KeyError as missing:
            raise NormalWorldError(
                f"/proc/meminfo has no {missing.args[0]}.",
                hint="Use Linux 3.14 or newer, with /proc mounted.",
            ) from None
        for cgroup in self._cgroups:
            limit = cgroup.limit()
            total = min(total, limit)
            available = min(available, max(0, limit - cgroup.used()))
        return MemorySample(total=total, available=available, stall=self._stall())

    def charged(self, pid: int) -> int:
        """Return the bytes that the OS counts as resident for process `pid` (0 if it is gone).

        From /proc/PID/statm, which anyone may read even of a process that cannot be traced.
        """
        try:
            words = _read(self._root / f"proc/{pid}/statm").split()
            return int(words[1]) * self._page
        except (NormalWorldError, IndexError, ValueError):
            return 0

    def _stall(self) -> float | None:
        try:
            match = _AVG10.search(_read(self._root / "proc/pressure/memory"))
        except NormalWorldError:  # a kernel without CONFIG_PSI, or psi=0
            return None
        return float(match[1]) if match else None


class _Cgroup:
    """One memory cgroup, version 1 or 2: the same three facts under different names."""

    def __init__(self, path: Path, *, limits: tuple[str, ...], usage: str, inactive: str) -> None:
        self._path = path
        self._limits = limits
        self._usage = usage
        self._inactive = inactive

    def limit(self) -> int:
        """Return the bytes this cgroup may use; _UNLIMITED where it has no limit (any more)."""
        return min(
            (_number(self._path / name, absent=_UNLIMITED) for name in self._limits), default=_UNLIMITED
        )

    def used(self) -> int:
        """Return the bytes this cgroup uses and the kernel would not drop first."""
        usage = _number(self._path / self._usage, absent=0)
        try:
            stat = _fields(_read(self._path / "memory.stat"), scale=1)
        except NormalWorldError:
            return usage
        return max(0, usage - stat.get(self._inactive, 0))


def _limiting_cgroups(root: Path) -> Iterator[_Cgroup]:
    """Yield the memory cgroups from this process's own up to the root that can hold a limit."""
    try:
        lines = _read(root / "proc/self/cgroup").splitlines()
    except NormalWorldError:  # a kernel without cgroups
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            mount = root / "sys/fs/cgroup"
            for folder in _upwards(mount, path):
                if (folder / "memory.max").exists():
                    yield _Cgroup(
                        folder,
                        limits=("memory.max", "memory.high"),
                        usage="memory.current",
                        inactive="inactive_file",
                    )
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            for folder in _upwards(mount, path):
                if (folder / "memory.limit_in_bytes").exists():
                    yield _Cgroup(
                        folder,
                        limits=("memory.limit_in_bytes",),
                        usage="memory.usage_in_bytes",
                        inactive="total_inactive_file",
                    )


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """Yield the folder of cgroup `path` below `mount`, then its parents, `mount` last.

    In a container the path may be the host's and not exist here; its existing parents still count.
    """
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    for length in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:length])


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE).decode("ascii", "replace")
    except OSError as error:
        raise NormalWorldError(
            f"{path} cannot be read: {error.strerror}.",
            hint="Mount /proc, and do not hide it from this user.",
        ) from None


def _fields(text: str, *, scale: int) -> dict[str, int]:
    """Return the "name[:] number" lines of `text`, numbers times `scale`; other lines are skipped."""
    fields: dict[str, int] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[1].isascii() and words[1].isdigit() and len(words[1]) < 20:
            fields[words[0].rstrip(":")] = int(words[1]) * scale
    return fields


def _number(path: Path, *, absent: int) -> int:
    """Return the number in `path`; `absent` when it is "max", missing or no number."""
    try:
        text = _read(path).strip()
    except NormalWorldError:
        return absent
    return min(int(text), _UNLIMITED) if text.isascii() and text.isdigit() and len(text) < 20 else absent
