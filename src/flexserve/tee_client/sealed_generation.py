"""Sealed requests as the port has them: one that is to be opened, one whose answer the application says.

What they ask and what is answered is in neither. Of an answer there are frames.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from flexserve.protocol.answers import Finished, Timings, Usage
from flexserve.protocol.rendered import Told
from flexserve.protocol.trusted_app import Ticket, Work
from flexserve.tee_client.generation import Send, milliseconds
from flexserve.tee_client.messages import Ask, Finish, Progress, broken
from flexserve.tee_client.open_model import OpenModel
from flexserve.tee_client.sealed import Unsealed
from flexserve.tee_client.sealed_kv import UNTOLD
from flexserve.tee_client.services import Services
from flexserve.trusted.kv.slots import Slot

Heard = Callable[[int, Finish], None]  # a step said so many tokens, and how the answer stands


@dataclasses.dataclass(slots=True, eq=False)
class Opening:
    """A sealed request to a model, for which that has to be open. `unsealed`: what it was found to be."""

    request: int
    model: str
    body: bytes
    unsealed: Unsealed | None = None

    def ticket(self, received: float) -> Ticket:
        """Return what policy learns of it: no weights are needed for that."""
        return Ticket(self.request, self.model, Work.CONVERT, received)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class SealedGenerate:
    """A sealed request for text that was opened. `heard`: who takes its frames."""

    request: int
    model: str
    unsealed: Unsealed
    told: Told
    heard: Heard

    def ticket(self, received: float) -> Ticket:
        """Return what policy learns of it."""
        told, named = self.told, (self.request, self.model, Work.GENERATE, received)
        return Ticket(*named, priority=told.priority, next_model=told.next_model, keep_alive=told.keep_alive)

    @property
    def known(self) -> list[int]:
        """The tokens of the prompt whose KV may be used again."""
        return [UNTOLD] * (self.unsealed.tokens - 1)


class SealedGeneration:
    """Such a request on its way in a sequence of its model. Belongs to the engine thread."""

    def __init__(self, services: Services, entry: OpenModel, request: SealedGenerate, slot: Slot) -> None:
        self.entry, self.request, self.slot = entry, request, slot
        self._app, self._sealed = services.app, services.sealed
        self.pending = self._size = request.unsealed.tokens
        self._cached = self._said = 0
        self._received = self._began = self._first = 0.0
        self._loaded, self._waited = entry.weights.loaded, entry.weights.waited
        self._loading = entry.weights.seconds

    def begin(self, received: float, began: float, _send: Send) -> None:
        """Begin it; `received`, `began`: when it came in, and left the queue (monotonic seconds)."""
        self._received, self._began = received, began
        self.pending = self._sealed.begin(self.entry.number, self.slot.number, self.request.unsealed.session)
        if not 0 < self.pending <= self._size:
            raise broken("it computes what was not asked")
        self._cached = self._size - self.pending
        self.entry.conversations.began(self.slot, [UNTOLD] * self._cached)

    def bound(self) -> None:
        """Do nothing: what the next token may be is not decided here."""

    def took(self, progress: Progress) -> Finished | None:
        """Take in what a step brought; return the end, if that was it."""
        self.pending = progress.pending
        more, self._said = progress.said - self._said, progress.said
        if more < 0:
            raise broken("it takes back what it said")
        if more and not self._first:
            self._first = time.monotonic()
        self.request.heard(more, progress.finished)
        if progress.finished is Finish.NO:
            return None
        return self._finished("stop" if progress.finished is Finish.STOP else "length")

    def close(self) -> None:
        """End it in the application; its KV stays in its sequence."""
        self._app.do(Ask.END, self.entry.number, self.slot.number)
        self.slot.tokens = [UNTOLD] * max(0, self._size + self._said - self.pending)
        self.slot.sealed = False
        self.entry.conversations.release(self.slot)

    def _finished(self, reason: str) -> Finished:
        """Return the end for policy. What the client gets of it, the application says."""
        ended, weights = time.monotonic(), self.entry.weights
        waited = weights.waited - self._waited
        timings = Timings(
            queue=milliseconds(self._began - self._received),
            restore=milliseconds(waited),
            load=milliseconds(weights.seconds - self._loading),
            prefill=milliseconds((self._first or ended) - self._began - waited),
            decode=milliseconds(ended - (self._first or ended)),
            ttft=milliseconds((self._first or ended) - self._received),
            restored_bytes=weights.loaded - self._loaded,
        )
        usage = Usage(self._size, self._said, self._cached)
        return Finished(self.request.request, reason, usage, timings)
