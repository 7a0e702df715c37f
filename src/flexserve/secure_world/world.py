"""Everything of a secure world, wired: the trusted application, the policies that drive it, one link."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Protocol

from flexserve.protocol.evidence import Attest
from flexserve.protocol.launch import SecureOptions
from flexserve.protocol.link import Link
from flexserve.protocol.memory import Pin, Recall
from flexserve.protocol.messages import PROTOCOL_VERSION, Configure, Query, Shutdown, Welcome
from flexserve.protocol.requests import Cancel, Convert, Embed, Generate, Try, Warm
from flexserve.protocol.sealed_messages import Sealed
from flexserve.protocol.statuses import KvStatus, NpuStatus
from flexserve.secure_world.attester import Attester, Witness
from flexserve.secure_world.resources import Guest, PlatformResources
from flexserve.serving.service import Service
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
        self._service = Service(
            *(self._app, options, link.send),
            report=self._sessions.send,
            rss=resources.host.own.resident,
            # A guest's kernel does not say what it could do without.
            spare=link.spare if options.rewarm and guest is None else None,
            npu=self._npu_status,
        )
        self._attester = Attester(witness, store.list, resources, link.send)
        if guest is not None:
            from flexserve.secure_world.guest import GuestDemands

            demands = GuestDemands(guest, flexmem, self._service.recall, self._service.later)
            guest.pages.start(demands)
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
                    self._service.submit(self._app.admit(message))
                case Sealed():
                    self._open(message)
                case Attest():
                    self._attester.ask(message)
                case Configure():
                    self._limits.configure(message.models)
                    self._service.obey(message)
                case Cancel() | Recall() | Pin() | Query() | Shutdown():
                    self._service.obey(message)

    def _open(self, message: Sealed) -> None:
        """Admit what a sealed request asks, as any other request."""
        session = self._sessions.open(message)
        if session is None:
            return
        if isinstance(session.asked, Query):
            self._sessions.send(self._service.status(session.number))
        else:
            self._service.submit(self._app.admit(session.asked, session.take))

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
