"""What code that got into the secure process would try, as an attacker who has taken over llama.cpp.

Each try is a program for a process of its own, which starts and confines itself as the secure process does,
opens a model, and makes the try then; `--open` leaves sandbox and key holder out, and the try must succeed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

from flexserve.errors import FlexServeError
from flexserve.platforms.linux import kernel_views, mman
from flexserve.platforms.linux.hardening import harden
from flexserve.platforms.linux.sandbox import confine, isolate
from flexserve.trusted.sidecar import start_key_holder
from flexserve.trusted.store.held_key import HeldKey
from flexserve.trusted.store.keys import Device, DeviceKey
from flexserve.trusted.store.store import Store

REACHED, MISSED = 0, 9  # exit statuses; a signal: the kernel ended the process for it
_KNOWN = 4  # bytes of a secret that the attacker knows, to find it by


@dataclasses.dataclass(frozen=True, slots=True)
class Aim:
    """What a try is made on. `prints`: of each secret its first bytes and the digest of all."""

    store: Path
    port: int  # somebody listens there
    maps: int  # descriptor of this process's own mappings
    prints: list[tuple[bytes, bytes]]
    device: Device


def print_of(secret: bytes) -> str:
    """Return what `prints` has of a secret of 32 bytes, as an argument of this program."""
    return (secret[:_KNOWN] + hashlib.sha256(secret).digest()).hex()


def read_key(aim: Aim) -> bool:
    """Read the device's key, which lies beside the store, by every path that leads there."""
    key = aim.store.with_name("device.key")
    for path in (key, Path("..") / key.name, Path("/proc/1/root") / key.relative_to("/")):
        with contextlib.suppress(OSError):
            return bool(path.read_bytes())
    return False


def find_key(aim: Aim) -> bool:
    """Look for the device's key, and for what is derived from it, in all memory of this process."""
    for piece in kernel_views.own_pieces(aim.maps, 32):
        for known, digest in aim.prints:
            at = piece.find(known)
            while at >= 0:
                if hashlib.sha256(piece[at : at + 32]).digest() == digest:
                    return True
                at = piece.find(known, at + 1)
    return False


def forge_model(aim: Aim) -> bool:
    """Have the device sign a manifest, for a model that nobody added."""
    try:
        return bool(aim.device.sign(b"FLEXSEAL" + bytes(100)))
    except FlexServeError:
        return False


def run_program(_aim: Aim) -> bool:
    """Start a program in this process's place."""
    os.execv("/bin/sh", ["sh", "-c", f"exit {REACHED}"])  # noqa: S606


def fork_process(_aim: Aim) -> bool:
    """Make another process."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def connect_out(aim: Aim) -> bool:
    """Open a connection to somebody who listens on this machine."""
    with contextlib.suppress(OSError), socket.socket() as line:
        line.connect(("127.0.0.1", aim.port))
        return True
    return False


def run_bytes(_aim: Aim) -> bool:
    """Make memory executable, to run code that came as data."""
    access = mman.PROT_READ | mman.PROT_WRITE | mman.PROT_EXEC
    mman.mmap(0, mman.PAGE, access, mman.MAP_PRIVATE | mman.MAP_ANONYMOUS)
    return True


def reach_others(_aim: Aim) -> bool:
    """Slow down, or end, another process of the same user: the one that started this."""
    other = os.getppid() or 1
    acts: tuple[Callable[[], None], ...] = (
        lambda: os.kill(other, 0),
        lambda: os.setpriority(os.PRIO_PROCESS, other, 19),
        lambda: os.setpriority(os.PRIO_USER, 0, 19),
        lambda: os.sched_setaffinity(other, os.sched_getaffinity(0)),
    )
    for act in acts:
        with contextlib.suppress(OSError):
            act()
            return True
    return False


TRIES: dict[str, Callable[[Aim], bool]] = {
    each.__name__: each
    for each in (
        read_key,
        find_key,
        forge_model,
        run_program,
        fork_process,
        connect_out,
        run_bytes,
        reach_others,
    )
}


def main() -> int:
    """Become what the secure process is, and make the try that is named."""
    parser = argparse.ArgumentParser(prog="flexserve.attacks.inside", description=__doc__)
    parser.add_argument("name", choices=TRIES)
    parser.add_argument("store", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("prints", type=bytes.fromhex, nargs="*")
    parser.add_argument("--open", action="store_true")
    options = parser.parse_args()
    key = options.store.with_name("device.key")
    maps = os.open("/proc/self/maps", os.O_RDONLY)
    device: Device
    if options.open:
        device = DeviceKey.load(key)
        os.chdir(options.store)
    else:
        not_isolated = isolate()
        harden(keep={maps})
        held = HeldKey(start_key_holder(), key)
        Store.make_folders(options.store)
        held.wait_until_ready()
        confine(options.store, Store.FOLDERS, not_isolated=not_isolated)
        device = held
    store = Store(Path(), device)
    for manifest in store.list():
        store.open(manifest.name).close()
    prints = [(each[:_KNOWN], each[_KNOWN:]) for each in options.prints]
    aim = Aim(options.store, options.port, maps, prints, device)
    try:
        return REACHED if TRIES[options.name](aim) else MISSED
    except OSError:
        return MISSED


if __name__ == "__main__":
    os._exit(main())
