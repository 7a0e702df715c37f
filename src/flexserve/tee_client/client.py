"""Everything of a client, wired: the application behind its port, the policies that drive it, one channel."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from flexserve.platforms.ports import Protection
from flexserve.protocol.evidence import Attest
from flexserve.protocol.launch import SecureOptions
from flexserve.protocol.link import Link
from flexserve.protocol.memory import Pin, Recall
from flexserve.protocol.messages import PROTOCOL_VERSION, Configure, Query, Shutdown, Welcome
from flexserve.protocol.requests import Cancel, Convert, Embed, Generate, Try, Warm
from flexserve.protocol.sealed_messages import Sealed
from flexserve.protocol.trusted_app import Ticket, TrustedApp
from flexserve.serving.demands import Demands
from flexserve.serving.service import Service
from flexserve.tee_client.request import Admitted
from flexserve.tee_client.ring_demands import RingDemands
from flexserve.tee_client.sealed import SealedRequests
from flexserve.tee_client.sealed_sessions import SealedSessions, Send
from flexserve.tee_client.witness import Witness
from flexserve.trusted.limits import ModelLimits

PROTECTION = Protection(
    name="trustzone-emulated-inside",
    protected=True,
    summary=(
        "Models compute at S-EL0 of the emulated machine: its kernel, its programs and its devices cannot "
        "reach their memory. Prompts and answers that are not sealed pass through a process of the host; "
        "whoever controls the host that emulates the machine can reach everything."
    ),
)


class Application(TrustedApp, Protocol):
    """A trusted application, and what takes requests in for it (tee_client.app.InsideApp)."""

    sealed: SealedRequests  # what passes sealed requests to it

    def admit(self, message: Admitted, send: Send | None = None) -> Ticket:
        """Take a request in; return what policy may know of it. Any thread. Raises PeerError."""


class Client:
    """Answers one normal world over one channel, by an application inside of the machine."""

    def __init__(
        self,
        channel: Link,
        app: Application,
        limits: ModelLimits,
        options: SecureOptions,
        witness: Witness,
        *,
        ring: memoryview,
        ram: int,
        rss: Callable[[], int],
        sandbox: str,
        engine: str,
    ) -> None:
        """`limits` are those that `app` goes by. `ram`: bytes of the machine. `rss` as Service has it.

        `witness` asks the application who it is. `sandbox` is the label's word for that, `engine` what
        computes, for people.
        """
        self._channel, self._app, self._limits, self._witness = channel, app, limits, witness
        self._sandbox, self._engine = sandbox, engine
        self._sealed = SealedSessions(app.sealed, app.admit, channel.send)
        self._service = Service(app, options, channel.send, report=self._sealed.report, rss=rss)
        self._sealed.start(self._service)
        demands = Demands(
            most=ram,
            held=self._held,
            return_unused=app.return_unused,
            recall=self._service.recall,
            later=self._service.later,
            close_idle=self._service.close_idle,
        )
        RingDemands(ring, demands).start()

    def serve(self) -> None:
        """Say Welcome and answer messages until Shutdown or until the normal world is gone.

        Raises PeerError when that breaks the protocol.
        """
        self._channel.send(
            Welcome(
                version=PROTOCOL_VERSION,
                pid=os.getpid(),
                protection=PROTECTION.name,
                protected=PROTECTION.protected,
                summary=f"{PROTECTION.summary} {self._sandbox}",
                engine=self._engine,
                chunk=self._app.chunk,
            )
        )
        for message in self._channel.messages():
            match message:
                case Generate() | Embed() | Convert() | Warm() | Try():
                    self._service.submit(self._app.admit(message))
                case Configure():
                    self._limits.configure(message.models)
                    self._service.obey(message)
                case Cancel():
                    self._sealed.cancel(message.request)
                    self._service.obey(message)
                case Recall() | Pin() | Query() | Shutdown():
                    self._service.obey(message)
                case Sealed():
                    self._sealed.open(message)
                case Attest():
                    self._witness.ask(message)

    def _held(self) -> int:
        pool = self._app.pool()
        return pool.resident + pool.granted
