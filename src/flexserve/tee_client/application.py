"""The trusted application as who drives it sees it: what its answers mean, refusals as errors."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

from flexserve.errors import FlexServeError, GrantRefusedError, InternalError, StoredDataError
from flexserve.tee_client.link import Link
from flexserve.tee_client.messages import VERSION, Ask, Reply, Status, broken
from flexserve.units import format_size

_CHUNKS = range(1 << 12, (1 << 30) + 1)  # bytes that one may have
_BATCHES = range(1, (1 << 16) + 1)  # tokens
_MOST_MISSING = 1 << 20  # chunks: more, no machine has
REFUSED_HINT = (
    "Give the machine more memory (`--guest-memory`), use a smaller model or a smaller `--context`, or try "
    "again later."
)


class Application:
    """A trusted application that was greeted. Thread-safe."""

    def __init__(self, link: Link, threads: int) -> None:
        """Greet it, and have it compute with so many threads. Raises PeerError and MachineGoneError."""
        self._link = link
        self.last_answer = time.monotonic()
        reply = self.do(Ask.HELLO, threads)
        version, self.chunk, self.batch, inside, *_ = reply.values
        if version != VERSION or self.chunk not in _CHUNKS or self.batch not in _BATCHES:
            raise broken("its greeting is none of this version")
        self.inside = inside == 1  # the secure OS: its heap, too, comes from what is granted

    def turn(self, within: float | None = None) -> AbstractContextManager[bool]:
        """As Link.turn."""
        return self._link.turn(within)

    def ask(self, kind: Ask, *arguments: int, payload: bytes = b"") -> Reply:
        """As Link.ask."""
        reply = self._link.ask(kind, *arguments, payload=payload)
        self.last_answer = time.monotonic()
        return reply

    def do(self, kind: Ask, *arguments: int, payload: bytes = b"") -> Reply:
        """As `ask`, but raises what a refusal means.

        GrantRefusedError; StoredDataError for what is damaged, or what llama.cpp cannot open; InternalError.
        """
        reply = self.ask(kind, *arguments, payload=payload)
        if reply.status is not Status.DONE:
            raise self.error(kind, reply)
        return reply

    def error(self, kind: Ask, reply: Reply) -> FlexServeError:
        """Return what an answer means that is not that it was done."""
        match reply.status:
            case Status.REFUSED | Status.MISSING:
                missing = min(reply.values[0], _MOST_MISSING) * self.chunk
                more = f": {format_size(missing)} more at least" if missing else ""
                return GrantRefusedError(
                    f"The OS of the machine has not granted the memory that this needs{more}.",
                    hint=REFUSED_HINT,
                    missing=missing,
                )
            case Status.UNSUPPORTED:
                return StoredDataError(
                    "llama.cpp cannot open this model in the secure world.",
                    hint="Use another model, or `--secure-world host`.",
                    code="model_unusable",
                )
            case Status.DAMAGED:
                return foreign()
        return InternalError(
            f"The trusted application did not do what it was asked: {kind.name}, {reply.status.name}.",
            hint="Please report this as a bug.",
            code="trusted_app_failed",
        )


def foreign() -> StoredDataError:
    """Return the error for a model that the application has no key for."""
    return StoredDataError(
        "The sealed model is damaged, or was sealed for another device.",
        hint="Remove it and add the model again.",
    )
