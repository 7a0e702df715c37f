"""Everything of a secure world, wired: the trusted application, the policies that drive it, one link."""

from __future__ import annotations

import dataclasses
import functools
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from flexserve.policy.eviction_policy import EvictionPolicy
from flexserve.protocol.evidence import Attest
from flexserve.protocol.launch import SecureOptions
from flexserve.protocol.memory import Pin, Recall
from flexserve.protocol.messages import PROTOCOL_VERSION, Configure, Query, Shutdown, Status, Welcome
from flexserve.protocol.requests import Cancel, Convert, Embed, Generate, Try, Warm
from flexserve.protocol.sealed_messages import Sealed
from flexserve.protocol.statuses import KvStatus, MemoryStatus, ModelStatus, NpuStatus
from flexserve.secure_world.attester import Attester, Witness
from flexserve.secure_world.link import Link
from flexserve.secure_world.resources import Guest, PlatformResources
from flexserve.serving.memory_manager import MemoryManager
from flexserve.serving.model_manager import ModelManager
from flexserve.serving.scheduler import Scheduler
from flexserve.trusted.app import LlamaApp
from flexserve.trusted.engine.runtime import Engine
from flexserve.trusted.flexnpu import FlexNpu
from flexserve.trusted.heartbeat import Heartbeat
from flexserve.trusted.limits import Limits, ModelLimits
from flexserve.trusted.memory.flexmem import FlexMem, Granter
from flexserve.trusted.open_model import Services
from flexserve.trusted.sessions.clock import steady_clock
from flexserve.trusted.sessions.receipts import Receipts
from flexserve.trusted.sessions.sessions import Sessions
from flexserve.trusted.store.store import Store
from flexserve.trusted.text.rendering.renderer import Renderer
from flexserve.trusted.weights.residency import Residency


class MakeResidency(Protocol):
    """How weights are brought in and kept. `folder`: for files, on the disk of the models."""

    def __call__(self, flexmem: FlexMem, threads: int, folder: Path) -> Residency:
        """Return what does it."""


class SecureWorld:
    """Answers one normal world over one link."""

    def __init__(
        self,
        link: Link,
        resources: PlatformResources,
        store: Store,
        renderer: Renderer,
        options: SecureOptions,
        *,
        witness: Witness,
        make_residency: MakeResidency,
    ) -> None:
        threads = options.threads or len(os.sched_getaffinity(0))
        self._link, self._resources = link, resources
        guest, heartbeat = resources.guest, Heartbeat()
        granter = _granter(guest, link)
        flexmem = FlexMem(resources.memory, resources.ram, granter, heartbeat)
        self._npu = (
            FlexNpu(resources.npu, patience=options.npu_patience) if resources.npu is not None else None
        )
        self._engine = Engine(flexmem, threads, heartbeat, adapt=not options.threads, npu=self._npu)
        self._limits = ModelLimits(Limits.usual(options))
        services = Services(
            self._engine,
            make_residency(flexmem, threads, options.store / "images"),
            store,
            renderer,
            self._limits,
            KvStatus(),
            # A guest's kernel grants Flex-Mem from its own memory; this process has the host's.
            shares_heap=guest is None,
        )
        self._app = LlamaApp(services, link.send)
        clock = steady_clock()
        label = resources.memory.protection.name
        receipts = Receipts(witness.sign_receipt, self._app.digests, label, clock)
        self._sessions = Sessions(witness.unseal, link.send, clock, receipts)
        self._models = ModelManager(self._app, options.idle_seconds)
        policy = EvictionPolicy(self._app.chunk, threshold=options.cache_threshold, top=options.cache_top)
        rewarms = options.rewarm and guest is None  # a guest's kernel does not say what it could do without
        self._memory = MemoryManager(self._app, self._models, policy, link.spare if rewarms else None)
        self._scheduler = Scheduler(
            *(self._app, self._models, self._memory, self._sessions.send),
            limit=options.max_queue,
            sequences=options.parallel,
            patience=options.step_seconds,
        )
        self._attester = Attester(witness, store.list, resources, link.send)
        self._recalls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        if guest is not None:
            from flexserve.secure_world.guest import GuestDemands

            demands = GuestDemands(guest, flexmem, self._memory.answer, later=self._recalls.put)
            guest.pages.start(demands)
        threading.Thread(target=self._answer_recalls, name="reclaimer", daemon=True).start()
        self._sessions.start()

    def serve(self) -> None:
        """Say Welcome and answer messages until Shutdown or until the normal world is gone.

        Raises PeerError when that breaks the protocol.
        """
        protection = self._resources.memory.protection
        self._link.send(
            Welcome(
                version=PROTOCOL_VERSION,
                pid=os.getpid(),
                protection=protection.name,
                protected=protection.protected,
                summary=self._resources.summary,
                engine=self._engine.build,
                chunk=self._app.chunk,
            )
        )
        for message in self._link.messages():
            match message:
                case Generate() | Embed() | Convert() | Warm() | Try():
                    self._scheduler.submit(self._app.admit(message))
                case Sealed():
                    self._open(message)
                case Cancel():
                    self._scheduler.cancel(message.request)
                case Recall():
                    self._recalls.put(functools.partial(self._answer, message))
                case Pin():
                    self._memory.pin(message.models)
                case Attest():
                    self._attester.ask(message)
                case Configure():
                    self._limits.configure(message.models)
                    options = message.models.items()
                    self._scheduler.use_drafts({name: its.draft for name, its in options if its.draft})
                case Query():
                    self._link.send(self._status(message.serial))
                case Shutdown():
                    # Aside, since what still runs may need grants, which this thread takes in.
                    threading.Thread(target=self._shut_down, args=(message,), daemon=True).start()

    def _open(self, message: Sealed) -> None:
        """Admit what a sealed request asks, as any other request."""
        session = self._sessions.open(message)
        if session is None:
            return
        if isinstance(session.asked, Query):
            self._sessions.send(self._status(session.number))
        else:
            self._scheduler.submit(self._app.admit(session.asked, session.take))

    def _shut_down(self, message: Shutdown) -> None:
        self._scheduler.drain(message.drain / 1000)
        os._exit(0)

    def _answer_recalls(self) -> None:
        while True:
            self._recalls.get()()

    def _answer(self, message: Recall) -> None:
        self._link.send(self._memory.answer(message))
        self._scheduler.memory_changed()

    def _status(self, serial: int) -> Status:
        queued, running = self._scheduler.counts()
        pool = self._app.pool()
        memory = MemoryStatus(
            chunk=self._app.chunk,
            granted=pool.granted,
            secure=pool.secure,
            recalling=pool.recalling,
            os_secure=pool.resident,
            os_rss=self._resources.host.resident(),
        )
        kv = self._app.kv_status()
        return Status(
            *(serial, self._model_statuses(), memory, queued, running, kv, self._npu_status()),
            computed=self._scheduler.computed(),
        )

    def _model_statuses(self) -> list[ModelStatus]:
        rewarmed = self._memory.rewarmed()
        return [
            msgspec.structs.replace(status, rewarmed=found[0], rewarmed_for=found[1])
            if (found := rewarmed.get(status.name))
            else status
            for status in self._models.statuses()
        ]

    def _npu_status(self) -> NpuStatus | None:
        if self._npu is None:
            return None
        counters = dataclasses.asdict(self._npu.counters) | {"held": 1000 * self._npu.held()}
        return NpuStatus(state=self._npu.state.value, **counters)


def _granter(guest: Guest | None, link: Link) -> Granter:
    """Return who grants memory: the guest's kernel, or the normal world's program."""
    if guest is None:
        return link
    from flexserve.secure_world.guest import GuestGranter

    return GuestGranter(guest.pages)
