"""Files that appear whole or not at all, and reads that are exact or an error.

A writer works on a temporary file beside its destination and publishes it with one `link` or
`rename`, after `fsync` of the file and before `fsync` of the directory. Killed at any point, it
leaves the old state or the new one, plus at most one temporary file that `sweep` removes.

A temporary file belongs to a living writer as long as that writer holds its POSIX record lock.
Such locks do not exclude the process that holds them, and closing *any* descriptor of the file
drops them; therefore a process also remembers the temporary files of its own writers and never
opens those.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from flexserve.errors import CallerError, NormalWorldError, StoredDataError
from flexserve.units import format_size

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700

_PREFIX, _SUFFIX = ".flexserve-", ".tmp"
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# What the kernel answers when the disk has lost what was written (bad blocks, checksums that do not match).
_LOST = frozenset({errno.EIO, errno.ENODATA, errno.EBADMSG, errno.EUCLEAN, errno.EILSEQ, errno.EREMOTEIO})


class ShortFileError(StoredDataError):
    """A file ends before what was to be read of it."""


_own_lock = threading.Lock()
_own: set[str] = set()  # names (random, so unique) of temporary files of living writers of this process


@contextlib.contextmanager
def disk_errors(action: str) -> Iterator[None]:
    """Turn an OSError of the block into NormalWorldError; a full disk has code "disk_full"."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise disk_full(action) from error
        raise NormalWorldError(
            f"{action} failed: {os.strerror(error.errno or 0)}.",
            hint="Check the disk and the permissions of the folder.",
            code="disk_failed",
        ) from error


@contextlib.contextmanager
def read_errors(what: str) -> Iterator[None]:
    """Turn an OSError of the block, which reads `what`, into an error that says whose fault it is.

    StoredDataError (code "disk_unreadable") when the disk has lost the data, NormalWorldError else.
    """
    try:
        with disk_errors(f"Reading {what}"):
            yield
    except NormalWorldError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _LOST:
            raise StoredDataError(
                f"The disk cannot read {what}.",
                hint="It may be failing: look at `dmesg` and at its health; add the model again from a copy.",
                code="disk_unreadable",
            ) from error.__cause__
        raise


def disk_full(action: str, needed: int | None = None) -> NormalWorldError:
    """Return the error that says that there is no room, for `needed` more bytes if known."""
    return NormalWorldError(
        f"{action} failed: the disk is full, or a quota or size limit is reached.",
        hint=f"Free {format_size(needed)} and try again." if needed else "Free some space and try again.",
        code="disk_full",
    )


def require_room(folder: Path, size: int, action: str) -> None:
    """Raise the disk-full error when `folder`'s file system has less than `size` bytes free."""
    with disk_errors(action):
        stats = os.statvfs(folder)
    free = stats.f_bavail * stats.f_frsize
    if free < size:
        raise disk_full(action, size - free)


def make_folder(folder: Path) -> None:
    """Create `folder` and its missing parents, mode 0700, for the owner of what they lie in.

    An existing one stays as it is.
    """
    with disk_errors(f"Creating {folder}"):
        for missing in [*reversed(folder.parents), folder]:
            if not missing.exists():
                with contextlib.suppress(FileExistsError):
                    os.mkdir(missing, PRIVATE_FOLDER)
                    give_to_owner_of(missing.parent, missing)


def give_to_owner_of(folder: Path, new: Path | int) -> None:
    """Have `new`, just made in `folder`, belong to whom the folder belongs to.

    Root adds models to the stores of others, that of a secure world which is not root among them.
    """
    if os.geteuid() == 0:
        owner = os.stat(folder)
        if owner.st_uid != 0:
            os.chown(new, owner.st_uid, owner.st_gid)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def on_disk(path: Path) -> int:
    """Return the bytes of disk that `path` has; 0: it is gone."""
    try:
        return os.lstat(path).st_blocks * 512
    except FileNotFoundError:
        return 0


def unlink(path: Path) -> int:
    """Remove `path` if it is there; return the bytes of disk it had."""
    size = on_disk(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return size


def read_exact(fd: int, parts: list[memoryview], offset: int, what: str) -> None:
    """Fill all of `parts` from `offset` of `fd`.

    The kernel writes into the parts directly, without the interpreter lock. Raises
    ShortFileError when the file ends first, and as `read_errors`.
    """
    wanted = sum(len(part) for part in parts)
    with read_errors(what):
        done = os.preadv(fd, parts, offset)
        while done < wanted:
            rest = _skip(parts, done)
            step = os.preadv(fd, rest, offset + done)
            if step == 0:
                raise ShortFileError(
                    f"{what[:1].upper()}{what[1:]} ends early.", hint="Remove it and add it again."
                )
            done += step


def write_all(fd: int, parts: list[memoryview], offset: int) -> None:
    """Write all of `parts` at `offset` of `fd`. Raises OSError."""
    wanted = sum(len(part) for part in parts)
    done = os.pwritev(fd, parts, offset)
    while done < wanted:
        done += os.pwritev(fd, _skip(parts, done), offset + done)


def _skip(parts: list[memoryview], count: int) -> list[memoryview]:
    rest = []
    for part in parts:
        if count < len(part):
            rest.append(part[count:])
        count = max(0, count - len(part))
    return rest


class NewFile:
    """A file that is being written, mode 0600, invisible under `destination` until published.

    A context manager: leaving it unpublished, by an exception or not, removes the file. `fd` is
    open for reading and writing. `kept` (see keep_as): leaving it unpublished leaves the file, too.
    All methods raise OSError; wrap calls in `disk_errors`.
    """

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self.fd = -1
        self.kept = False
        while not self._create():
            pass

    def _create(self) -> bool:
        self._path = self.destination.with_name(f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}")
        with _own_lock:
            _own.add(self._path.name)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self.fd = os.open(self._path, flags, PRIVATE_FILE)
            give_to_owner_of(self._path.parent, self.fd)
            os.lockf(self.fd, os.F_LOCK, 0)
        except BaseException:
            self.discard()
            raise
        # Between creation and lock another process may have swept the file: it has no name then.
        if os.fstat(self.fd).st_nlink:
            return True
        self.discard()
        return False

    def keep_as(self, path: Path) -> None:
        """Let the file, unfinished as it is, outlive its writer as `path`, in place of what is there."""
        os.replace(self._path, path)
        with _own_lock:
            _own.discard(self._path.name)
            _own.add(path.name)
        self._path = path
        self.kept = True

    def publish(self) -> None:
        """Give the file its name, durably. Raises FileExistsError when the name is taken."""
        os.fsync(self.fd)
        os.link(self._path, self.destination)
        self.discard()
        sync_folder(self.destination.parent)

    def publish_over(self, *, durable: bool = True) -> None:
        """Give the file its name, in place of whatever has that name now."""
        if durable:
            os.fsync(self.fd)
        os.replace(self._path, self.destination)
        self.discard()
        if durable:
            sync_folder(self.destination.parent)

    def discard(self) -> None:
        """Remove the temporary name, unless the file is kept, and close the file. Always safe."""
        with _own_lock:
            if self._path.name not in _own:
                return
        if not self.kept:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
        if self.fd >= 0:
            os.close(self.fd)  # drops the lock, so after the unlink
            self.fd = -1
        with _own_lock:
            _own.discard(self._path.name)

    def __enter__(self) -> NewFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


@contextlib.contextmanager
def open_locked(path: Path) -> Iterator[int]:
    """Yield a descriptor of the kept file `path`, which nobody else writes meanwhile.

    Where there is none it is made, and removed in the end if it is still empty. Raises CallerError (code
    "pull_running") while its writer lives, and OSError.
    """
    with _own_lock:
        if path.name in _own:
            raise _busy(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, PRIVATE_FILE)
    try:
        try:
            os.lockf(fd, os.F_TLOCK, 0)
        except (BlockingIOError, PermissionError):
            raise _busy(path) from None
        if os.fstat(fd).st_nlink == 0:  # its writer put another in its place before it ended
            raise _busy(path)
        give_to_owner_of(path.parent, fd)
        try:
            yield fd
        finally:
            if os.fstat(fd).st_nlink and not os.fstat(fd).st_size:
                os.unlink(path)
    finally:
        os.close(fd)  # drops the lock, so after the unlink


def _busy(path: Path) -> CallerError:
    return CallerError(
        f"{path.stem} is being pulled already, by another process.",
        hint="Wait for it, or end it; what it has is kept.",
        code="pull_running",
    )


def sweep(folder: Path) -> None:
    """Remove the temporary files that writers which are gone left in `folder`."""
    with disk_errors(f"Cleaning up {folder}"):
        for name in os.listdir(folder):
            if name.startswith(_PREFIX) and name.endswith(_SUFFIX):
                _sweep_one(folder / name)


def _sweep_one(path: Path) -> None:
    with _own_lock:
        if path.name in _own:
            return
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return  # gone since it was listed, or no file of ours
    try:
        os.lockf(fd, os.F_TLOCK, 0)
        os.unlink(path)
    except (BlockingIOError, PermissionError, FileNotFoundError):
        return  # its writer lives, or just finished
    finally:
        os.close(fd)
