"""The secure world's program: harden, enter the sandbox, shake hands, serve until the normal world goes away.

Started by flexserve.normal.launcher; not meant to be run by hand. When it cannot start it
prints why as one line of JSON on standard error (flexserve.protocol.launch).
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from flexserve.errors import FlexServeError, PeerError
from flexserve.platforms.linux import secure_memory as linux
from flexserve.platforms.linux.hardening import die_with_parent, harden
from flexserve.platforms.linux.sandbox import Sandbox, confine, isolate
from flexserve.platforms.ports import SecureMemory
from flexserve.platforms.trustzone import secure_memory as trustzone
from flexserve.platforms.trustzone.flexnpu import TrustZoneNpu
from flexserve.protocol.failures import failure_of
from flexserve.protocol.launch import EXIT_CANNOT_START, LinuxMemory, SecureOptions
from flexserve.secure_world.link import Link
from flexserve.secure_world.resources import Guest, Host, PlatformResources
from flexserve.secure_world.world import MakeResidency, SecureWorld
from flexserve.trusted.memory.flexmem import FlexMem
from flexserve.trusted.store.held_key import HeldKey
from flexserve.trusted.store.store import Store
from flexserve.trusted.text.rendering.renderer import Renderer
from flexserve.trusted.weights.residency import Residency
from flexserve.units import MIB

_PROBE = 256 * MIB  # of locked memory: less would not run any model worth serving
# What libraries import when they first need it, and could not in the sandbox.
_IMPORTED_LATER = (
    "encodings.ascii",
    "encodings.latin_1",
    "encodings.unicode_escape",
    "numpy.ctypeslib",
    "numpy.ma",
)
# The interpreter hands the lock over this often (seconds); the default of 5 ms is longer than
# a loader takes for a chunk.
_SWITCH_INTERVAL = 0.0005

LINUX_MEMORIES: Mapping[LinuxMemory, Callable[[int], SecureMemory]] = {
    "secret": linux.MemfdSecretMemory,
    "plain": linux.PlainMemory,
}


def _own_residency(flexmem: FlexMem, threads: int, folder: Path) -> Residency:  # noqa: ARG001
    """Return FlexServe's own residency."""
    return Residency(flexmem, threads)


def main(
    arguments: Sequence[str] | None = None,
    make_residency: MakeResidency = _own_residency,
    memories: Mapping[LinuxMemory, Callable[[int], SecureMemory]] = LINUX_MEMORIES,
) -> int:
    """Run the secure world; return its exit status."""
    try:
        options = SecureOptions.parse(sys.argv[1:] if arguments is None else arguments)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the normal world's to handle
        sys.setswitchinterval(_SWITCH_INTERVAL)
        for module in _IMPORTED_LATER:
            importlib.import_module(module)
        not_isolated = isolate()
        harden(keep=set(options.fds))
        die_with_parent(signal.SIGKILL)
        host = Host.now()
        key = HeldKey(options.device_key, _end_without_key)
        renderer = Renderer(_end_without_helper)
        key.wait_until_ready()
        if options.memory == "secret":
            linux.probe_secret_memory(_PROBE)
        Store.make_folders(options.store)
        not_alone = renderer.wait_until_ready()
        sandbox = confine(options.store, Store.FOLDERS, not_isolated=not_isolated)
        if not_alone:
            sandbox.lacking["processes of its helper's own"] = not_alone
        options = msgspec.structs.replace(options, store=Path())  # there it is now
        resources = _resources(options, host, sandbox, memories)
        link = Link(socket.socket(fileno=options.channel_fd))
        link.expect_hello()
        world = SecureWorld(
            link, resources, Store(options.store, key), renderer, options, make_residency=make_residency
        )
    except FlexServeError as error:
        sys.stderr.write(msgspec.json.encode(failure_of(error)).decode() + "\n")
        return EXIT_CANNOT_START
    except EOFError:
        return 0  # the normal world went away before it said anything
    threading.excepthook = _end_with
    try:
        world.serve()
    except PeerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _end_with(death: threading.ExceptHookArgs) -> None:
    """End the process when one of its threads dies: half a secure world would look alive and be useless.

    Says which thread and which type of exception; its text may quote a prompt.
    """
    name = death.thread.name if death.thread is not None else "a thread"
    sys.stderr.write(f"{name} died of {death.exc_type.__name__}\n")
    sys.stderr.flush()
    os._exit(1)


def _resources(
    options: SecureOptions,
    host: Host,
    sandbox: Sandbox,
    memories: Mapping[LinuxMemory, Callable[[int], SecureMemory]],
) -> PlatformResources:
    """Return the memory that was asked for. Raises NormalWorldError where it cannot be had."""
    if options.memory == "trustzone":
        pages = trustzone.pages_of(options.ram_fd, options.doorbell_fd)
        memory = trustzone.TrustZoneMemory(pages, options.chunk or trustzone.DEFAULT_CHUNK)
        npu = TrustZoneNpu(pages, memory, options.npu_driver) if options.npu_driver else None
        guest = Guest(pages, npu, _end_with_the_machine)
        return PlatformResources(memory, pages.ram.size, host, sandbox, guest)
    own = memories[options.memory](options.chunk or linux.DEFAULT_CHUNK)
    return PlatformResources(own, host.ram, host, sandbox)


def _end_with_the_machine() -> None:
    """End the process when the machine whose memory it works in is gone."""
    sys.stderr.write("the machine is gone\n")
    sys.stderr.flush()
    os._exit(1)


def _end_without_helper() -> None:
    """End the process when its helper is gone: there is no starting another from the sandbox."""
    sys.stderr.write("the helper that renders templates is gone\n")
    sys.stderr.flush()
    os._exit(1)


def _end_without_key() -> None:
    """End the process when the one that holds the device key is gone: no model can be opened any more."""
    sys.stderr.write("the process that holds the device key is gone\n")
    sys.stderr.flush()
    os._exit(1)


def leave(status: int) -> NoReturn:
    """End the process, not through the interpreter's end: engine and loader threads may be inside C."""
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main())
