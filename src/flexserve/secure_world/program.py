"""What the secure world's program does when its libraries are there: enter the sandbox, greet, serve."""

from __future__ import annotations

import functools
import importlib
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from flexserve.errors import PeerError
from flexserve.platforms.linux import secure_memory as linux
from flexserve.platforms.linux.sandbox import Sandbox, confine
from flexserve.platforms.ports import SecureMemory
from flexserve.protocol.ending import end, end_with_any_thread
from flexserve.protocol.launch import LinuxMemory, SecureOptions
from flexserve.protocol.link import Link
from flexserve.secure_world.attester import machine_layers
from flexserve.secure_world.resources import Guest, Host, PlatformResources
from flexserve.secure_world.world import MakeResidency, SecureWorld
from flexserve.trusted.memory.flexmem import FlexMem
from flexserve.trusted.sidecar import Sidecar
from flexserve.trusted.store.held_key import HeldKey
from flexserve.trusted.store.store import Store
from flexserve.trusted.text.rendering.renderer import Renderer
from flexserve.trusted.weights.residency import Residency
from flexserve.units import MIB

_PROBE = 256 * MIB  # of locked memory: less would not run any model worth serving
# What libraries import when they first need it, and could not in the sandbox.
_IMPORTED_LATER = ("encodings.ascii", "encodings.latin_1", "encodings.unicode_escape")
# What only a world on the emulated machine needs.
_MACHINE = (
    "flexserve.platforms.trustzone.flexnpu",
    "flexserve.platforms.trustzone.measured_boot",
    "flexserve.platforms.trustzone.secure_memory",
    "flexserve.secure_world.guest",
)

Memories = Mapping[LinuxMemory, Callable[[int], SecureMemory]]  # by the chunk, in bytes
LINUX_MEMORIES: Memories = {"secret": linux.MemfdSecretMemory, "plain": linux.PlainMemory}


def prepare(
    options: SecureOptions,
    holder: Sidecar,
    helper: Sidecar,
    not_isolated: str,
    *,
    make_residency: MakeResidency | None = None,
    memories: Memories | None = None,
) -> SecureWorld:
    """Enter the sandbox, shake hands, and return the world. `not_isolated`: what `isolate` returned.

    `make_residency` and `memories`: others than FlexServe's own.

    Raises FlexServeError for what keeps it from starting, EOFError when the normal world is gone.
    """
    for module in _IMPORTED_LATER + (_MACHINE if options.memory == "trustzone" else ()):
        importlib.import_module(module)
    host = Host.now()
    key, renderer = (
        HeldKey(holder, options.device_key, _end_without_key),
        Renderer(helper, _end_without_helper),
    )
    key.wait_until_ready()
    if options.memory == "secret":
        linux.probe_secret_memory(_PROBE)
    Store.make_folders(options.store)
    not_alone = renderer.wait_until_ready()
    sandbox = confine(options.store, Store.FOLDERS, not_isolated=not_isolated)
    if not_alone:
        sandbox.lacking["processes of its helper's own"] = not_alone
    options = msgspec.structs.replace(options, store=Path())  # there it is now
    resources = _resources(options, host, sandbox, memories or LINUX_MEMORIES)
    if resources.guest is not None:
        key.machine = functools.partial(machine_layers, resources.guest)
    link = Link(socket.socket(fileno=options.channel_fd))
    store = Store(options.store, key)
    world = SecureWorld(
        link,
        resources,
        store,
        renderer,
        options,
        witness=key,
        make_residency=make_residency or _own_residency,
    )
    link.expect_hello()
    return world


def serve(world: SecureWorld) -> int:
    """Serve until the normal world goes away; return the process's exit status."""
    end_with_any_thread()
    try:
        world.serve()
    except PeerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _own_residency(flexmem: FlexMem, threads: int, folder: Path) -> Residency:  # noqa: ARG001
    """Return FlexServe's own residency."""
    return Residency(flexmem, threads)


def _resources(options: SecureOptions, host: Host, sandbox: Sandbox, memories: Memories) -> PlatformResources:
    """Return the memory that was asked for. Raises NormalWorldError where it cannot be had."""
    if options.memory == "trustzone":
        from flexserve.platforms.trustzone import secure_memory as trustzone
        from flexserve.platforms.trustzone.flexnpu import TrustZoneNpu

        pages = trustzone.pages_of(options.ram_fd, options.doorbell_fd)
        memory = trustzone.TrustZoneMemory(pages, options.chunk or trustzone.DEFAULT_CHUNK)
        npu = TrustZoneNpu(pages, memory, options.npu_driver) if options.npu_driver else None
        firmware = (options.firmware, options.firmware_authority)
        guest = Guest(pages, npu, lambda: end("the machine is gone"), *firmware)
        return PlatformResources(memory, pages.ram.size, host, sandbox, guest)
    own = memories[options.memory](options.chunk or linux.DEFAULT_CHUNK)
    return PlatformResources(own, host.ram, host, sandbox)


def _end_without_helper() -> None:
    """End the process when its helper is gone: there is no starting another from the sandbox."""
    end("the helper that renders templates is gone")


def _end_without_key() -> None:
    """End the process when the one that holds the device key is gone: no model can be opened any more."""
    end("the process that holds the device key is gone")
