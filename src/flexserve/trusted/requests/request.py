"""A request inside of the trusted application: what was asked, and what came of it so far."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import msgspec

from flexserve.protocol.answers import Converted
from flexserve.protocol.trusted_app import Ticket
from flexserve.trusted.requests.embedding import Embedding
from flexserve.trusted.requests.generation import Generation
from flexserve.trusted.requests.guesser import Guesser
from flexserve.trusted.requests.tasks import Message, ticket_of
from flexserve.trusted.text.preparation import Prepared


@dataclasses.dataclass(slots=True, eq=False)
class Request:
    """One request from its admission to its end. Fields belong to the engine thread, but for `stopped`."""

    message: Message
    received: float  # monotonic seconds
    send: Callable[[msgspec.Struct], None]
    prepared: Prepared | None = None
    converted: Converted | None = None
    generation: Generation | None = None
    embedding: Embedding | None = None
    guesser: Guesser | None = None  # what guesses its next tokens
    stopped: bool = False
    interrupt: Callable[[], None] | None = None  # breaks off what computes for this request alone
    uses: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)

    @property
    def ticket(self) -> Ticket:
        """What policy learns of it."""
        return ticket_of(self.message, self.received)

    def stop(self) -> None:
        """Have it end soon. Any thread."""
        self.stopped = True
        if self.interrupt is not None:
            self.interrupt()
