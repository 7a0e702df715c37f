"""What a process of the secure world gives up once it has started: all that it does not need.

From the outside in: namespaces of its own (no network, no file system but its store), a user of its own
where root started it, no capability, Landlock (its store and nothing else), and a filter of system calls.
Each layer is tried; what this kernel or this container refuses is told with the reason, never skipped
silently. A compromised llama.cpp then finds no key to read, no program to start and nobody to connect to.

    isolate → harden → start helpers → confine → threads, models, requests

Nothing can be opened afterwards but files of the store: all that will be needed is imported before.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import os
import resource
import signal
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from flexserve.errors import InternalError, NormalWorldError
from flexserve.platforms.linux import landlock, seccomp
from flexserve.platforms.linux.hardening import die_with_parent, stay_hidden

# Root's secure worlds run as this user, whom nothing else belongs to: beyond what distributions give to
# people and services (up to 65535), before what container managers take (from 524288).
SERVICE_USER = 377077

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 0x1000, 0x4000, 0x40000, 2
_PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _AMBIENT_CLEAR = 8, 24, 47, 4
_CAPABILITY_VERSION = 0x20080522
_CAP_IPC_LOCK = 14
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


_libc = ctypes.CDLL(None, use_errno=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Sandbox:
    """What came of `confine`: the layers that could not be had, each with its reason."""

    lacking: dict[str, str]

    @property
    def summary(self) -> str:
        """The label's words for it."""
        if not self.lacking:
            return "The secure process is sandboxed."
        reasons = "; ".join(f"{layer} ({reason})" for layer, reason in self.lacking.items())
        return f"The secure process is sandboxed, but without {reasons}."


class _Layers:
    """Tries one layer after the other."""

    def __init__(self) -> None:
        self.lacking: dict[str, str] = {}

    @contextlib.contextmanager
    def layer(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.lacking[name] = (error.strerror or "refused").lower()


def isolate() -> str:
    """Leave the machine's network, IPC, names and mounts for namespaces of its own.

    Returns why it cannot ("": it did). Before `harden`: a process that hides may not map its user. Who
    is not root needs a namespace of users first. There CAP_IPC_LOCK counts for nothing, so who depends on
    it to lock memory stays outside.
    """
    apart = _CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS
    try:
        _require_one_thread()
        if os.geteuid() != 0:
            _require(not _needs_capability_to_lock(), "they would take CAP_IPC_LOCK")
            _enter_users()
        _unshare(apart)
        _mount(None, b"/", _MS_REC | _MS_PRIVATE)
    except OSError as error:
        return (error.strerror or "refused").lower()
    return ""


def keep_mounts() -> None:
    """Have this process see the files that it sees now, whatever a process beside it mounts or confines.

    Where that is refused, it is refused to those, too.
    """
    with contextlib.suppress(OSError):
        _unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if os.geteuid() != 0 else 0))


def leave_processes() -> str:
    """Go on as the first of a namespace of processes, in a child of this one; return why not ("": it does).

    It names no process outside then, whatever its filter lets it, and all that it starts ends with it. The
    caller stays behind, gives up what it has, waits for the child and ends as that does. Before `harden`.
    """
    try:
        _require_one_thread()
        if os.geteuid() != 0:
            _enter_users()
        _unshare(_CLONE_NEWPID)
        child = os.fork()
    except OSError as error:
        return (error.strerror or "refused").lower()
    if child == 0:
        die_with_parent(signal.SIGKILL)
        return ""
    os.closerange(0, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    die_with_parent(signal.SIGKILL)
    confine_holder()
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)


def _enter_users() -> None:
    """Enter a namespace of users in which this process's user and group are all that there is."""
    user, group = os.geteuid(), os.getegid()
    _unshare(_CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def confine(store: Path, folders: Sequence[str], *, not_isolated: str) -> Sandbox:
    """Leave this process its memory, its descriptors and the files in `folders` of `store`, for good.

    They exist. `store` is the current directory afterwards, and absolute paths lead nowhere. Root gives
    the folders of a store of its own, and their files, to SERVICE_USER; with anybody else's store it
    becomes its owner. `not_isolated` is what `isolate` returned. Raises InternalError while there is more
    than one thread, since a layer would miss the others, NormalWorldError when the store cannot be entered.
    The process ends with its parent.
    """
    _require_one_thread()
    layers = _Layers()
    _enter(store)
    with layers.layer("namespaces"):
        _require(not not_isolated, not_isolated)
        _make_current_folder_the_root()
    with _without_capabilities(), layers.layer("a user of its own"):
        _become_owner_of(folders)
    with layers.layer("Landlock"):
        _require(landlock.version() > 0, "this kernel has none")
        landlock.enter([Path(folder) for folder in folders])
    _filter_calls(layers, seccomp.serving)
    return Sandbox(layers.lacking)


def confine_helper() -> Sandbox:
    """Leave this process, which forks for each job, memory and descriptors: no file, no socket, no program.

    Its children inherit it; they may limit themselves further (setrlimit, alarm), and be killed by it.
    Raises InternalError while there is more than one thread.
    """
    return _confine_without_files(seccomp.rendering)


def confine_holder() -> Sandbox:
    """As `confine_helper`, for a process that forks nothing and names no process but itself."""
    return _confine_without_files(seccomp.holding)


def _confine_without_files(program: Callable[[], bytes]) -> Sandbox:
    _require_one_thread()
    layers = _Layers()
    with _without_capabilities(), layers.layer("a user of its own"):
        if os.geteuid() == 0:
            _become(SERVICE_USER, SERVICE_USER)
    with layers.layer("Landlock"):
        _require(landlock.version() > 0, "this kernel has none")
        landlock.enter([])
    _filter_calls(layers, program)
    return Sandbox(layers.lacking)


def _filter_calls(layers: _Layers, program: Callable[[], bytes]) -> None:
    with layers.layer("a filter of system calls"):
        _require(seccomp.available(), "neither this kernel nor this machine has one")
        seccomp.install(program())


def _require_one_thread() -> None:
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise InternalError(
            f"A sandbox cannot be entered by {threads} threads at once.",
            hint="Start secure worlds with the environment of flexserve.normal.launcher.",
        )


def _require(fact: bool, reason: str) -> None:
    if not fact:
        raise OSError(errno.ENOSYS, reason)


# ---- files and users ------------------------------------------------------------------------------


def _enter(store: Path) -> None:
    try:
        os.chdir(store)
    except OSError as error:
        raise NormalWorldError(
            f"The store {store} cannot be entered: {error.strerror}.", hint="Check the folder's permissions."
        ) from None


def _make_current_folder_the_root() -> None:
    """Make the current folder the whole file system. Raises OSError."""
    place = os.fsencode(os.getcwd())
    _mount(place, place, _MS_BIND | _MS_REC)
    os.chdir(place)
    number = ctypes.c_long(_PIVOT_ROOT.get(os.uname().machine, -1))
    _checked(_libc.syscall(number, b".", b"."), "pivot_root")
    _checked(_libc.umount2(b".", ctypes.c_int(_MNT_DETACH)), "umount")
    os.chdir("/")


def _become_owner_of(folders: Sequence[str]) -> None:
    """Become, if this is root, the owner of `folders`; those of root's get a new one. Raises OSError."""
    if os.geteuid() != 0:
        return
    state = os.stat(folders[0])
    user, group = state.st_uid, state.st_gid
    if user == 0:
        user = group = SERVICE_USER
        for folder in folders:
            for name in ("", *os.listdir(folder)):
                os.chown(os.path.join(folder, name), user, group, follow_symlinks=False)
    os.chmod(".", stat.S_IMODE(os.stat(".").st_mode) | stat.S_IXOTH)  # the way to them, and no list of them
    _become(user, group)


def _become(user: int, group: int) -> None:
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)


# ---- capabilities ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _without_capabilities() -> Iterator[None]:
    """Give up every capability but CAP_IPC_LOCK where memory could not be locked without it.

    What cannot be had again goes first; in the block the user may change, and then the rest goes.
    """
    kept = 1 << _CAP_IPC_LOCK if _needs_capability_to_lock() else 0
    for capability in range(64):
        _prctl(_PR_CAPBSET_DROP, capability)  # fails beyond those that exist, and without CAP_SETPCAP
    _prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR)
    _prctl(_PR_SET_KEEPCAPS, 1)
    yield
    _set_capabilities(kept)
    stay_hidden()  # again, as the kernel forgets both when the user changes
    die_with_parent(signal.SIGKILL)


def _needs_capability_to_lock() -> bool:
    """Return whether it is CAP_IPC_LOCK alone that lets this process lock memory.

    Whoever may raise the limit to "unlimited" does not need it any more.
    """
    if not _capabilities() >> _CAP_IPC_LOCK & 1:
        return False
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)
    except (OSError, ValueError):
        return True
    return False


def _capabilities() -> int:
    """Return the effective capabilities of this process."""
    head = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    sets = ctypes.create_string_buffer(24)
    _checked(_libc.capget(head, sets), "capget")
    low, _, _, high = struct.unpack("=6I", sets.raw)[:4]
    return int(low | high << 32)


def _set_capabilities(kept: int) -> None:
    head = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    low = kept & 0xFFFFFFFF
    _checked(_libc.capset(head, struct.pack("=6I", low, low, 0, 0, 0, 0)), "capset")


# ---- calls ----------------------------------------------------------------------------------------


def _prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    _libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero)


def _unshare(flags: int) -> None:
    _checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def _mount(source: bytes | None, target: bytes, flags: int) -> None:
    _checked(_libc.mount(source, target, None, ctypes.c_ulong(flags), None), "mount")


def _checked(result: int, call: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")
