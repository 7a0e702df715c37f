"""What code that got into the secure process would try, as an attacker who has taken over llama.cpp.

Each try is a program for a process of its own, which enters the sandbox of the secure process as that
does and makes the try then; `--open` leaves the sandbox out, and the try must succeed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from flexserve.platforms.linux import mman
from flexserve.platforms.linux.hardening import harden
from flexserve.platforms.linux.sandbox import confine, isolate
from flexserve.secure.models.store import Store

REACHED, MISSED = 0, 9  # exit statuses; a signal: the kernel ended the process for it


def read_key(store: Path, _port: int) -> bool:
    """Read the device's key, which lies beside the store, by every path that leads there."""
    key = store.with_name("device.key")
    for path in (key, Path("..") / key.name, Path("/proc/1/root") / key.relative_to("/")):
        with contextlib.suppress(OSError):
            return bool(path.read_bytes())
    return False


def run_program(_store: Path, _port: int) -> bool:
    """Start a program in this process's place."""
    os.execv("/bin/sh", ["sh", "-c", f"exit {REACHED}"])  # noqa: S606


def fork_process(_store: Path, _port: int) -> bool:
    """Make another process."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def connect_out(_store: Path, port: int) -> bool:
    """Open a connection to somebody who listens on this machine."""
    with contextlib.suppress(OSError), socket.socket() as line:
        line.connect(("127.0.0.1", port))
        return True
    return False


def run_bytes(_store: Path, _port: int) -> bool:
    """Make memory executable, to run code that came as data."""
    access = mman.PROT_READ | mman.PROT_WRITE | mman.PROT_EXEC
    mman.mmap(0, mman.PAGE, access, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
    return True


TRIES: dict[str, Callable[[Path, int], bool]] = {
    each.__name__: each for each in (read_key, run_program, fork_process, connect_out, run_bytes)
}


def main() -> int:
    """Enter the sandbox and make the try that is named: [--open] NAME STORE PORT."""
    *options, name, folder, port = sys.argv[1:]
    store = Path(folder)
    if "--open" not in options:
        not_isolated = isolate()
        harden(keep=set())
        Store.make_folders(store)
        confine(store, Store.FOLDERS, not_isolated=not_isolated)
    else:
        os.chdir(store)
    try:
        return REACHED if TRIES[name](store, int(port)) else MISSED
    except OSError:
        return MISSED


if __name__ == "__main__":
    os._exit(main())
