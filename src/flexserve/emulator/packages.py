"""The Debian packages that the machine is made of: a stock arm64 kernel, its modules and headers; libraries.

They come from the apt sources of this machine (a Debian 12), checked by apt against its archive keys,
without root and without a trace in the system: apt is given a state of its own. Which kernel is
current is asked of apt, never written down here.

Atomic: a kernel's folder appears only when it is whole. Resumable: packages that came already are
not fetched again. What is there is used without asking anybody.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from flexserve.emulator import tools
from flexserve.errors import FlexServeError, NormalWorldError
from flexserve.units import MIB, format_size

Progress = Callable[[str], None]  # is told what begins, in a few words

_META = "linux-image-cloud-arm64"  # depends on the current kernel
_SERIES = "6.1."  # the kernel whose interfaces driver/ is written for
_DOWNLOAD = 300.0  # seconds
_ROOM = 600 * MIB  # on the disk: the lists of apt, packages, and what is in them
_SOON, _POLL = 1.0, 0.05  # seconds
_APT = """
APT::Architecture "{host}";
APT::Architectures {{ "{host}"; "arm64"; }};
APT::Sandbox::User "";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "30";
Dir::State "{apt}/state";
Dir::State::status "{apt}/status";
Dir::Cache "{apt}/cache";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
Dir::Log "{apt}/log";
"""


class NoPackageError(NormalWorldError):
    """The apt sources of this machine do not deliver a package that we need."""

    default_code = "no_package"


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel, below `folder`."""

    release: str
    folder: Path

    @property
    def image(self) -> Path:
        """The kernel itself, a plain arm64 Image."""
        return self.folder / "boot" / f"vmlinuz-{self.release}"

    @property
    def modules(self) -> Path:
        """Its modules."""
        return self.folder / "lib/modules" / self.release

    @property
    def headers(self) -> Path:
        """What modules are built against, with `make -C`."""
        return self.folder / "usr/src" / f"linux-headers-{self.release}"


def kernel(cache: Path, progress: Progress) -> Kernel:
    """Return the kernel that `cache` holds, fetched first when there is none.

    Raises MissingToolError, NoPackageError when this machine's apt sources do not have it, NormalWorldError
    when the disk is too full.
    """
    cache.mkdir(parents=True, exist_ok=True)
    held = _held(cache)
    if held is not None:
        return held  # whatever another command fetches meanwhile
    with locked(cache / "packages.lock", progress):
        return _held(cache) or _fetch(cache, progress)


def library(cache: Path, name: str, progress: Progress) -> Path:
    """Return the folder with the contents of the arm64 package `name`, fetched first when `cache` lacks it.

    Raises MissingToolError, or NoPackageError when this machine's apt sources do not have it.
    """
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"arm64-{name}"
    if target.is_dir():
        return target
    with locked(cache / "packages.lock", progress):
        if not target.is_dir():
            tools.require("apt-get", "dpkg", "dpkg-deb")
            apt = _Apt(cache / "apt")
            progress(f"downloading {name}")
            apt.update()
            _unpack(apt, [f"{name}:arm64"], target)
    return target


def require_room(folder: Path, size: int, what: str) -> None:
    """Raise NormalWorldError (code "disk_full") unless `folder`'s disk has `size` bytes for `what`."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise NormalWorldError(
            f"Making {what} takes {format_size(size)} of disk, and {folder} has {format_size(free)} left.",
            hint="Make room, or set XDG_CACHE_HOME to a folder on another disk.",
            code="disk_full",
        )


@contextlib.contextmanager
def passing_folder(folder: Path, prefix: str) -> Iterator[Path]:
    """Yield a folder in `folder` that is gone after the block.

    Of those with the same `prefix`, which processes that were killed have left, none stays. So who makes one
    holds a lock.
    """
    for left in folder.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=prefix) as name:
        yield Path(name)


@contextlib.contextmanager
def locked(path: Path, progress: Progress) -> Iterator[None]:
    """Keep other processes that want the same lock waiting. It ends with the process, too.

    Who waits for longer than it takes to see that all is built says so.
    """
    with path.open("w") as file:
        if not _taken_soon(file):
            progress("waiting for another command, which builds the same")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _taken_soon(file: TextIO) -> bool:
    deadline = time.monotonic() + _SOON
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL)
        else:
            return True


def _held(cache: Path) -> Kernel | None:
    """Return the newest whole kernel of the cache."""
    found = [Kernel(path.name.removeprefix("linux-"), path) for path in cache.glob(f"linux-{_SERIES}*")]
    return max(found, key=lambda one: _natural(one.release), default=None)


def _natural(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)]


def _fetch(cache: Path, progress: Progress) -> Kernel:
    tools.require("apt-get", "apt-cache", "dpkg", "dpkg-deb")
    apt = _Apt(cache / "apt")
    require_room(cache, _ROOM, "the machine's Linux")
    progress("asking apt for the current kernel")
    apt.update()
    release = apt.current_release()
    names = apt.packages_of(release)
    progress(f"downloading Linux {release}")
    target = cache / f"linux-{release}"
    _unpack(apt, names, target, lambda whole: _settle_headers(whole, release, target))
    return Kernel(release, target)


def _unpack(
    apt: _Apt, names: list[str], target: Path, settle: Callable[[Path], None] = lambda _whole: None
) -> None:
    """Download packages, and have what is in them in `target`, changed by `settle` before that appears."""
    files = apt.download(names)
    with passing_folder(target.parent, "unpacking-") as folder:
        whole = folder / "whole"
        for file in files:
            tools.run("dpkg-deb", "--extract", file, whole)
        settle(whole)
        os.rename(whole, target)
    shutil.rmtree(apt.debs)


def _settle_headers(whole: Path, release: str, target: Path) -> None:
    """Have the headers find each other in `target` instead of in the system's own folders."""
    makefile = whole / "usr/src" / f"linux-headers-{release}" / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src/", f"{target}/usr/src/"))


class _Apt:
    """apt with everything but its sources and keys in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.debs = folder / "debs"
        self._host = tools.run("dpkg", "--print-architecture").strip()
        for name in ("state/lists/partial", "cache/archives/partial", "log", "debs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        self._settings = folder / "apt.conf"
        self._settings.write_text(_APT.format(host=self._host, apt=folder))

    def update(self) -> None:
        """Fetch the lists. A source that does not answer is no matter, if the others have the kernel."""
        try:
            self._run("apt-get", "update")
        except FlexServeError as error:
            self._complaint = error.message
        else:
            self._complaint = ""

    def current_release(self) -> str:
        """Return the release that the newest package of the kernel depends on."""
        found = re.search(rf"linux-image-({re.escape(_SERIES)}\S*-cloud-arm64)", self._depends(_META))
        if found is None:
            missing = f"The apt sources of this machine have no Linux {_SERIES}x for arm64."
            raise NoPackageError(
                f"{missing} {self._complaint}".strip(),
                hint="Use a Debian 12, or one whose apt sources list Debian 12, with access to its mirror.",
            )
        return found[1]

    def packages_of(self, release: str) -> list[str]:
        """Return the packages that hold the kernel, its headers and the programs that build modules."""
        headers = f"linux-headers-{release}"
        depends = self._depends(headers)
        parts = re.findall(r"(linux-headers-\S+-common|linux-kbuild-\S+)", depends)
        common, kbuild = sorted(parts) if len(parts) == 2 else ("", "")
        if not kbuild:
            raise NoPackageError(f"{headers} is not what it was: {depends}.", hint="Report this.")
        return [f"linux-image-{release}:arm64", f"{headers}:arm64", common, f"{kbuild}:{self._host}"]

    def download(self, names: list[str]) -> list[Path]:
        """Return the packages' files, whole and checked by apt."""
        try:
            self._run("apt-get", "download", *names, cwd=self.debs, seconds=_DOWNLOAD)
        except FlexServeError as error:
            raise NoPackageError(
                f"apt could not download {', '.join(names)}: {error.message}",
                hint="See to the network and run this again: what came is kept.",
            ) from error
        found = [sorted(self.debs.glob(f"{name.partition(':')[0]}_*.deb")) for name in names]
        return [files[-1] for files in found]

    def _depends(self, package: str) -> str:
        try:
            shown = self._run("apt-cache", "show", "--no-all-versions", f"{package}:arm64")
        except FlexServeError:
            return ""  # unknown here
        return "".join(line for line in shown.splitlines() if line.startswith("Depends:"))

    def _run(self, program: str, *words: str, cwd: Path | None = None, seconds: float = 120) -> str:
        return tools.run(program, "-q", "-c", self._settings, *words, cwd=cwd, seconds=seconds)
