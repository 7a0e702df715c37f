"""What the client's program does when its libraries are there: map the ring, enter the sandbox, serve."""

from __future__ import annotations

import importlib
import os
import socket
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import msgspec

from flexserve.errors import FlexServeError, PeerError
from flexserve.platforms.linux.own_memory import OwnMemory
from flexserve.platforms.linux.sandbox import confine
from flexserve.platforms.trustzone.ram import Ram
from flexserve.protocol import link
from flexserve.protocol.ending import end, end_with_any_thread
from flexserve.protocol.launch import EXIT_CUT_OFF, SecureOptions
from flexserve.tee_client.app import InsideApp
from flexserve.tee_client.client import Client
from flexserve.tee_client.disk import Disk
from flexserve.tee_client.doorbell import Doorbell
from flexserve.tee_client.files import SealedFiles
from flexserve.tee_client.guest_disk import GuestDisk
from flexserve.tee_client.link import Link
from flexserve.tee_client.ring import Ring
from flexserve.tee_client.witness import Witness
from flexserve.trusted.limits import Limits, ModelLimits
from flexserve.trusted.sidecar import Sidecar
from flexserve.trusted.store.store import Store
from flexserve.trusted.text.rendering.renderer import Renderer

_REST = 0.0005  # seconds between two looks for an answer
# What libraries import when they first need it, and could not in the sandbox.
_IMPORTED_LATER = ("encodings.ascii", "encodings.latin_1", "encodings.unicode_escape")


def prepare(
    options: SecureOptions,
    helper: Sidecar,
    not_isolated: str,
    make_app: Callable[..., InsideApp] | None = None,
) -> Client:
    """Enter the sandbox, shake hands, and return the client. `not_isolated`: what `isolate` returned.

    `make_app` is called as InsideApp, in its place: for measurements.
    Raises FlexServeError for what keeps it from starting.
    """
    for module in _IMPORTED_LATER:
        importlib.import_module(module)
    engine = f"llama.cpp of llama-cpp-python {metadata.version('llama-cpp-python')}, for Armv8.2-A"
    own, renderer = OwnMemory(), Renderer(helper, _end_without_helper)
    ram = Ram(options.ram_fd)
    ring = ram.part(options.ring_offset, options.ring_bytes)
    guest = _guest(options, ram)
    os.close(options.ram_fd)  # nothing else of it is ours to see
    Store.make_folders(options.store)
    not_alone = renderer.wait_until_ready()
    sandbox = confine(options.store, Store.FOLDERS, not_isolated=not_isolated)
    if not_alone:
        sandbox.lacking["processes of its helper's own"] = not_alone
    options = msgspec.structs.replace(options, store=Path())  # there it is now
    channel = link.Link(socket.socket(fileno=options.channel_fd))
    bell = Doorbell(socket.socket(fileno=options.doorbell_fd), end, _end_without_machine)
    limits = ModelLimits(Limits.usual(options))
    wire = Ring(ring, _rest, bell.ring)
    files = SealedFiles(options.store, bell.make_models_ready)
    to_application = Link(wire, _end_with_link)
    disk = Disk(guest, to_application) if guest is not None else None
    app = (make_app or InsideApp)(
        *(to_application, files, renderer, limits, channel.send), threads=options.threads, disk=disk
    )
    client = Client(
        *(channel, app, limits, options, Witness(app.sealed, files, options.identity, channel.send)),
        ring=ring,
        ram=ram.size,
        rss=own.resident,
        sandbox=sandbox.summary,
        engine=engine,
    )
    channel.expect_hello()
    return client


def _guest(options: SecureOptions, ram: Ram) -> GuestDisk | None:
    """Return what has the machine's disk; None: it has none."""
    if options.disk_fd < 0:
        return None
    buffer = ram.part(options.buffer_offset, options.buffer_bytes)
    return GuestDisk(socket.socket(fileno=options.disk_fd), buffer, end)


def serve(client: Client) -> int:
    """Serve until the normal world goes away; return the process's exit status."""
    end_with_any_thread()
    try:
        client.serve()
    except PeerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _rest() -> None:
    """Wait for an answer. If none will come any more, the doorbell ends this process."""
    time.sleep(_REST)


def _end_without_machine() -> None:
    end("the machine is gone", EXIT_CUT_OFF)


def _end_with_link(why: FlexServeError) -> None:
    end(str(why), EXIT_CUT_OFF)


def _end_without_helper() -> None:
    """End the process when its helper is gone: there is no starting another from the sandbox."""
    end("the helper that renders templates is gone")
