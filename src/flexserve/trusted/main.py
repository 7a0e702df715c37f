"""The secure world's program: harden, enter the sandbox, shake hands, serve until the normal world goes away.

Started by flexserve.normal.launcher; not meant to be run by hand. When it cannot start it
prints why as one line of JSON on standard error and exits with status 3.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from flexserve.bench.baselines import BASELINES, make_residency
from flexserve.errors import FlexServeError, PeerError
from flexserve.platforms.linux import secure_memory as linux
from flexserve.platforms.linux.hardening import die_with_parent, harden
from flexserve.platforms.linux.roads import reach, roads
from flexserve.platforms.linux.sandbox import Sandbox, confine, isolate
from flexserve.platforms.ports import Npu, SecureMemory
from flexserve.platforms.trustzone import secure_memory as trustzone
from flexserve.platforms.trustzone.flexnpu import TrustZoneNpu
from flexserve.protocol.messages import (
    PROTOCOL_VERSION,
    Cancel,
    Embed,
    Generate,
    KvStatus,
    MemoryStatus,
    NpuStatus,
    Pin,
    Query,
    Recall,
    Shutdown,
    Status,
    Try,
    Warm,
    Welcome,
)
from flexserve.serving.eviction import Cache
from flexserve.serving.model_manager import Limits, Shelf
from flexserve.serving.reclaim import Reclaimer
from flexserve.serving.scheduler import Scheduler
from flexserve.serving.watchdog import PATIENCE as PATIENCE_OF_STEPS
from flexserve.trusted.engine.runtime import Engine
from flexserve.trusted.failures import failure_of
from flexserve.trusted.flexnpu import PATIENCE, FlexNpu
from flexserve.trusted.guest import Guest
from flexserve.trusted.link import Link
from flexserve.trusted.memory.flexmem import FlexMem
from flexserve.trusted.memory.ownership import PageState
from flexserve.trusted.store.held_key import HeldKey
from flexserve.trusted.store.store import Store
from flexserve.trusted.text.preparation import Preparation
from flexserve.trusted.text.rendering.renderer import Renderer
from flexserve.units import GIB, MIB

EXIT_CANNOT_START = 3
_DEFAULT_CONTEXT = 4096  # tokens
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
# a loader takes for a granule.
_SWITCH_INTERVAL = 0.0005


@dataclasses.dataclass(frozen=True, slots=True)
class Host:
    """What is asked of the host's kernel before the sandbox closes."""

    ram: int  # bytes
    statm: int  # descriptor of this process's memory, as the OS counts it
    reach: str  # what of root it keeps out, in the label's words

    @classmethod
    def now(cls) -> Host:
        """Ask."""
        ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return cls(ram, os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC), reach(roads()))

    def resident(self) -> int:
        """Return the bytes that the OS counts as resident for this process."""
        return int(os.pread(self.statm, 256, 0).split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclasses.dataclass(frozen=True, slots=True)
class Ground:
    """What a secure world stands on."""

    memory: SecureMemory
    ram: int  # bytes of the machine that the memory is of
    host: Host
    sandbox: Sandbox
    guest: Guest | None = None  # who grants it; None: the normal world's program
    npu: Npu | None = None

    @property
    def summary(self) -> str:
        """The label: of the memory, of root where the memory is to be kept from it, of the sandbox."""
        protection = self.memory.protection
        root = [self.host.reach] if protection.protected and self.guest is None else []
        return " ".join([protection.summary, *root, self.sandbox.summary])


class SecureWorld:
    """Everything of a secure world, wired: answers one normal world over one link."""

    def __init__(
        self, link: Link, ground: Ground, store: Store, renderer: Renderer, options: argparse.Namespace
    ) -> None:
        threads = options.threads or len(os.sched_getaffinity(0))
        self._link, self._ground = link, ground
        self._flexmem = FlexMem(ground.memory, ground.ram, ground.guest or link)
        self._engine = Engine(self._flexmem, threads, adapt=not options.threads)
        self._npu = FlexNpu(ground.npu, patience=options.npu_patience) if ground.npu is not None else None
        self._engine.use_npu(self._npu)
        self._residency = make_residency(options.baseline, self._flexmem, threads, options.store / "images")
        limits = Limits(
            context=options.context or _DEFAULT_CONTEXT,
            sequences=options.parallel,
            parked=options.kv_disk,
            idle=options.idle_seconds,
        )
        self._shelf = Shelf(self._engine, self._residency, store, limits, renderer)
        # On a machine of its own the guest's kernel grants Flex-Mem, and this process has the host's memory.
        self._shelf.counts_heap = ground.guest is None
        self._cache = Cache(self._shelf, self._residency, self._flexmem.granule)
        self._flexmem.spare = self._cache.spare
        self._scheduler = Scheduler(
            self._shelf,
            self._cache,
            Preparation(renderer),
            link.send,
            limit=options.max_queue,
            patience=options.step_seconds,
        )
        self._engine.moved = self._flexmem.moved = self._scheduler.watchdog.moved
        self._reclaimer = Reclaimer(self._shelf, self._cache, self._residency, self._flexmem)
        self._recalls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        if ground.guest is not None:
            ground.guest.follow(self._flexmem, self._reclaimer, later=self._recalls.put)
        threading.Thread(target=self._answer_recalls, name="reclaimer", daemon=True).start()

    def serve(self) -> None:
        """Say Welcome and answer messages until Shutdown or until the normal world is gone."""
        protection = self._flexmem.protection
        self._link.send(
            Welcome(
                version=PROTOCOL_VERSION,
                pid=os.getpid(),
                protection=protection.name,
                protected=protection.protected,
                summary=self._ground.summary,
                engine=self._engine.build,
                granule=self._flexmem.granule,
            )
        )
        for message in self._link.messages():
            match message:
                case Generate() | Embed() | Warm() | Try():
                    self._scheduler.submit(message)
                case Cancel():
                    self._scheduler.cancel(message.request)
                case Recall():
                    self._recalls.put(functools.partial(self._answer, message))
                case Pin():
                    self._shelf.pin(message.models)
                case Query():
                    self._link.send(self._status(message.serial))
                case Shutdown():
                    # Aside, since what still runs may need grants, which this thread takes in.
                    threading.Thread(target=self._shut_down, args=(message,), daemon=True).start()

    def _shut_down(self, message: Shutdown) -> None:
        self._scheduler.drain(message.drain / 1000)
        os._exit(0)

    def _answer_recalls(self) -> None:
        while True:
            self._recalls.get()()

    def _answer(self, message: Recall) -> None:
        self._link.send(self._reclaimer.answer(message))

    def _status(self, serial: int) -> Status:
        queued, running = self._scheduler.counts()
        flexmem = self._flexmem
        memory = MemoryStatus(
            granule=flexmem.granule,
            granted=flexmem.bytes_in(PageState.GRANTED),
            secure=flexmem.bytes_in(PageState.SECURE),
            recalling=flexmem.bytes_in(PageState.RECALLING),
            os_secure=flexmem.resident(),
            os_rss=self._ground.host.resident(),
        )
        kv = KvStatus(**dataclasses.asdict(self._shelf.counters))
        return Status(serial, self._shelf.statuses(), memory, queued, running, kv, self._npu_status())

    def _npu_status(self) -> NpuStatus | None:
        if self._npu is None:
            return None
        counters = dataclasses.asdict(self._npu.counters) | {"held": 1000 * self._npu.held()}
        return NpuStatus(state=self._npu.state.value, **counters)


def main(arguments: list[str] | None = None) -> int:
    """Run the secure world; return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the normal world's to handle
        sys.setswitchinterval(_SWITCH_INTERVAL)
        for module in _IMPORTED_LATER:
            importlib.import_module(module)
        not_isolated = isolate()
        harden(keep={options.channel_fd, options.ram_fd, options.doorbell_fd})
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
        options.store = Path()  # there it is now
        ground = _ground(options, host, sandbox)
        link = Link(socket.socket(fileno=options.channel_fd))
        link.expect_hello()
        world = SecureWorld(link, ground, Store(options.store, key), renderer, options)
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


def _ground(options: argparse.Namespace, host: Host, sandbox: Sandbox) -> Ground:
    """Return the memory that was asked for. Raises NormalWorldError where it cannot be had."""
    if options.memory == "trustzone":
        pages = trustzone.pages_of(options.ram_fd, options.doorbell_fd, on_end=_end_with_the_machine)
        memory = trustzone.TrustZoneMemory(pages, options.granule or trustzone.DEFAULT_GRANULE)
        npu = TrustZoneNpu(pages, memory, options.npu_driver) if options.npu_driver else None
        return Ground(memory, pages.ram.size, host, sandbox, Guest(pages), npu)
    kind = linux.PlainMemory if options.memory == "plain" else linux.MemfdSecretMemory
    return Ground(kind(options.granule or linux.DEFAULT_GRANULE), host.ram, host, sandbox)


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flexserve.trusted", description=__doc__)
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--device-key", type=Path, required=True)
    parser.add_argument("--memory", choices=["secret", "plain", "trustzone"], default="secret")
    parser.add_argument("--ram-fd", type=int, default=-1, help="trustzone: the machine's RAM")
    parser.add_argument("--doorbell-fd", type=int, default=-1, help="trustzone: its secure UART")
    parser.add_argument(
        "--npu-driver", type=bytes.fromhex, default=b"", help="trustzone: SHA-256 of what may drive its NPU"
    )
    parser.add_argument("--npu-patience", type=float, default=PATIENCE, help="seconds for a job of it")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--context", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=4, help="sequences of a model generated at once")
    parser.add_argument("--kv-disk", type=int, default=GIB, help="bytes of sealed KV kept for a model")
    parser.add_argument("--max-queue", type=int, default=64)
    parser.add_argument(
        "--step-seconds", type=float, default=PATIENCE_OF_STEPS, help="the engine may stand still"
    )
    parser.add_argument("--idle-seconds", type=float, default=300.0)
    parser.add_argument("--granule", type=int, default=0, help="bytes; a power of two")
    parser.add_argument("--baseline", choices=["", *BASELINES], default="", help="for measurements")
    return parser


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # not through the interpreter's end: engine and loader threads may be inside C
