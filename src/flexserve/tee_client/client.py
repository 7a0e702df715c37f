"""Everything of a client, wired: the application behind its port, the policies that drive it, one channel."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from flexserve.errors import CallerError
from flexserve.platforms.ports import Protection
from flexserve.protocol.answers import Failed
from flexserve.protocol.evidence import Attest, Attested
from flexserve.protocol.failures import failure_of
from flexserve.protocol.launch import SecureOptions
from flexserve.protocol.link import Link
from flexserve.protocol.memory import Pin, Recall
from flexserve.protocol.messages import PROTOCOL_VERSION, Configure, Query, Shutdown, Welcome
from flexserve.protocol.requests import Cancel, Convert, Embed, Generate, Try, Warm
from flexserve.protocol.sealed_messages import Sealed
from flexserve.protocol.trusted_app import Ticket, TrustedApp
from flexserve.serving.demands import Demands
from flexserve.serving.service import Service
from flexserve.tee_client.ring_demands import RingDemands
from flexserve.trusted.limits import ModelLimits

PROTECTION = Protection(
    name="trustzone-emulated-inside",
    protected=True,
    summary=(
        "Models compute at S-EL0 of the emulated machine: its kernel, its programs and its devices cannot "
        "reach their memory. Prompts and answers pass through a process of the host; whoever controls the "
        "host that emulates the machine can reach everything."
    ),
)


class Application(TrustedApp, Protocol):
    """A trusted application, and what takes requests in for it (tee_client.app.InsideApp)."""

    def admit(self, message: Generate | Embed | Convert | Warm | Try) -> Ticket:
        """Take a request in; return what policy may know of it. Any thread. Raises PeerError."""


class Client:
    """Answers one normal world over one channel, by an application inside of the machine."""

    def __init__(
        self,
        channel: Link,
        app: Application,
        limits: ModelLimits,
        options: SecureOptions,
        *,
        ring: memoryview,
        ram: int,
        rss: Callable[[], int],
        sandbox: str,
        engine: str,
    ) -> None:
        """`limits` are those that `app` goes by. `ram`: bytes of the machine. `rss` as Service has it.

        `sandbox`: the label's words for it, `engine`: what computes, for people.
        """
        self._channel, self._app, self._limits = channel, app, limits
        self._sandbox, self._engine = sandbox, engine
        self._service = Service(app, options, channel.send, report=channel.send, rss=rss)
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
                case Cancel() | Recall() | Pin() | Query() | Shutdown():
                    self._service.obey(message)
                case Sealed():
                    self._channel.send(Failed(message.request, failure_of(_not_inside("sealed requests"))))
                case Attest():
                    failure = failure_of(_not_inside("attestation"))
                    self._channel.send(Attested(message.serial, [], b"", failure))

    def _held(self) -> int:
        pool = self._app.pool()
        return pool.resident + pool.granted


def _not_inside(what: str) -> CallerError:
    return CallerError(
        f"A secure world inside of the machine has no {what} yet.",
        hint="Start the server with --secure-world host.",
        code="not_inside",
    )
