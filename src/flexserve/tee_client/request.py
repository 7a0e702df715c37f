"""A request to the trusted application: what was asked, and what came of it so far."""

from __future__ import annotations

import contextlib
import dataclasses

from flexserve.protocol.answers import Converted
from flexserve.protocol.trusted_app import Ticket
from flexserve.tee_client.embedding import Embedding
from flexserve.tee_client.generation import Generation, Prepared, Send
from flexserve.tee_client.open_model import OpenModel
from flexserve.tee_client.sealed_generation import Opening, SealedGenerate, SealedGeneration
from flexserve.trusted.requests.tasks import Message, ticket_of

Admitted = Message | Opening | SealedGenerate


@dataclasses.dataclass(slots=True, eq=False)
class Request:
    """One request from its admission to its end. Fields belong to the engine thread, but for `stopped`."""

    message: Admitted
    received: float  # monotonic seconds
    send: Send
    entry: OpenModel | None = None  # that it was prepared for
    prepared: Prepared | None = None
    converted: Converted | None = None
    generation: Generation | SealedGeneration | None = None
    embedding: Embedding | None = None
    stopped: bool = False
    uses: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)

    @property
    def opened(self) -> OpenModel:
        """The model that it was prepared for."""
        assert self.entry is not None, "it is not prepared"
        return self.entry

    @property
    def ready(self) -> Prepared:
        """What came of its preparation."""
        assert self.prepared is not None, "it is not prepared"
        return self.prepared

    @property
    def ticket(self) -> Ticket:
        """What policy learns of it."""
        if isinstance(self.message, Opening | SealedGenerate):
            return self.message.ticket(self.received)
        return ticket_of(self.message, self.received)
