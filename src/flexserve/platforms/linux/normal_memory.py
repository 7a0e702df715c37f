"""What Linux says about memory: the NormalMemory port over /proc and the memory cgroup.

A server inside a container may use less than the machine has: every memory limit on the way from
this process's cgroup to the root bounds `total`, `available` and `free`. Cached file pages count
as available there, as they do in MemAvailable: the kernel drops them before anything fails. What
dropping them costs their users shows in `refaulted` and `stall`, which are those of the cgroup
whose limit is the tightest, or the machine's when no limit is below its memory.
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

    `root` is where /proc and /sys are found: "/" but in tests. Reads a dozen small files per call
    (some 200 µs), limits included, since both they and the process's cgroup may change meanwhile.
    """

    def __init__(self, *, root: Path = Path("/")) -> None:
        self._root = root
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._membership: str | None = None
        self._cgroups: list[_Cgroup] = []
        self._counter: tuple[Path, int] | None = None  # what was last read of whose refaults, in pages
        self._refaulted = 0  # pages

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
        free = fields.get("MemFree")
        tightest: _Cgroup | None = None
        for cgroup in self._own_cgroups():
            limit = cgroup.limit()
            if limit >= _UNLIMITED:
                continue
            cgroup.look()
            if limit < total:
                total, tightest = limit, cgroup
            available = min(available, max(0, limit - cgroup.used))
            free = None if free is None else min(free, max(0, limit - cgroup.usage))
        return MemorySample(total, available, self._stall(tightest), free, self._count_refaults(tightest))

    def charged(self, pid: int) -> int:
        """Return the bytes that the OS counts as resident for process `pid` (0 if it is gone).

        From /proc/PID/statm, which anyone may read even of a process that cannot be traced.
        """
        try:
            words = _read(self._root / f"proc/{pid}/statm").split()
            return int(words[1]) * self._page
        except (NormalWorldError, IndexError, ValueError):
            return 0

    def _own_cgroups(self) -> list[_Cgroup]:
        try:
            membership = _read(self._root / "proc/self/cgroup")
        except NormalWorldError:  # a kernel without cgroups
            membership = ""
        if membership != self._membership:
            self._membership = membership
            self._cgroups = list(_memory_cgroups(self._root, membership))
        return self._cgroups

    def _stall(self, cgroup: _Cgroup | None) -> float | None:
        """Return PSI of `cgroup` where it has its own (version 2), else the machine's."""
        own = [] if cgroup is None else [cgroup.folder / "memory.pressure"]
        for path in (*own, self._root / "proc/pressure/memory"):
            try:
                match = _AVG10.search(_read(path))
            except NormalWorldError:  # a kernel without CONFIG_PSI, or psi=0, or version 1
                continue
            return float(match[1]) if match else None
        return None

    def _count_refaults(self, cgroup: _Cgroup | None) -> int | None:
        """Return the bytes of files read back since the first call, of `cgroup` or the machine.

        Counted up across a change of limits, which may change whose counter is read.
        """
        if cgroup is not None:
            folder, pages = cgroup.folder, cgroup.refaults
        else:
            folder = self._root / "proc/vmstat"
            try:
                pages = _fields(_read(folder), scale=1).get("workingset_refault_file")
            except NormalWorldError:
                pages = None
        if pages is None:
            return None
        if self._counter is not None and self._counter[0] == folder:
            self._refaulted += max(0, pages - self._counter[1])
        self._counter = folder, pages
        return self._refaulted * self._page


class _Cgroup:
    """One memory cgroup, version 1 or 2: the same facts under different names.

    `usage`, `used` and `refaults` are those of the last `look`; all of the cgroup and those below it.
    """

    def __init__(self, folder: Path, *, limits: tuple[str, ...], usage: str, prefix: str) -> None:
        self.folder = folder
        self._limits = limits
        self._usage = usage
        self._prefix = prefix  # of what counts the cgroups below, too
        self.usage = 0  # bytes
        self.used = 0  # bytes that the kernel cannot drop by forgetting files
        self.refaults: int | None = None  # pages; None: this kernel does not count them

    def limit(self) -> int:
        """Return the bytes this cgroup may use; _UNLIMITED where it has no limit (any more)."""
        return min(
            (_number(self.folder / name, absent=_UNLIMITED) for name in self._limits), default=_UNLIMITED
        )

    def look(self) -> None:
        """Read what is used, and of what kind."""
        self.usage = _number(self.folder / self._usage, absent=0)
        try:
            stat = _fields(_read(self.folder / "memory.stat"), scale=1)
        except NormalWorldError:
            stat = {}
        cached = (stat.get(f"{self._prefix}{list_}_file", 0) for list_ in ("inactive", "active"))
        self.used = max(0, self.usage - sum(cached))
        name = f"{self._prefix}workingset_refault"
        self.refaults = stat.get(f"{name}_file", stat.get(name))  # the shorter name before Linux 5.9


def _memory_cgroups(root: Path, membership: str) -> Iterator[_Cgroup]:
    """Yield the memory cgroups from this process's own up to the root that can hold a limit.

    `membership` is the text of /proc/self/cgroup. Version 2 is mounted at its own place, or, beside
    version 1, at "unified"; a controller is with one version only.
    """
    for line in membership.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            for mount in (root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"):
                for folder in _upwards(mount, path):
                    if (folder / "memory.max").exists():
                        limits = ("memory.max", "memory.high")
                        yield _Cgroup(folder, limits=limits, usage="memory.current", prefix="")
        elif "memory" in controllers.split(","):
            for folder in _upwards(root / "sys/fs/cgroup/memory", path):
                if (folder / "memory.limit_in_bytes").exists():
                    yield _Cgroup(
                        folder,
                        limits=("memory.limit_in_bytes",),
                        usage="memory.usage_in_bytes",
                        prefix="total_",
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
