"""Errors carry blame: the type says whose fault it is, the hint says what to do next.

Five parties can be at fault (law 8 of docs/design.md), so there are five families below
`FlexServeError`. `code` is a stable machine-readable word; `message` never contains a
prompt, a token, a key or weights; `hint` is one imperative sentence for the reader.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping


class Blame(enum.Enum):
    """Whose fault an error is."""

    CALLER = "caller"
    NORMAL_WORLD = "normal_world"
    MONITOR = "monitor"
    STORED_DATA = "stored_data"
    BUG = "bug"


class FlexServeError(Exception):
    """Base of every error that FlexServe raises on purpose."""

    blame: Blame = Blame.BUG
    default_code = "internal_error"
    default_hint = ""

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        code: str | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        """`counts`: what the message counts, by name, for programs."""
        super().__init__(message)
        self.message = message
        self.counts = dict(counts or {})
        self.hint = hint or self.default_hint
        self.code = code or self.default_code

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class CallerError(FlexServeError):
    """The request cannot be served as asked; asking differently helps."""

    blame = Blame.CALLER
    default_code = "invalid_request"


class UnknownModelError(CallerError):
    """No model of that name is in the store."""

    default_code = "model_not_found"


class QueueFullError(CallerError):
    """More requests wait than the queue holds; retry later."""

    default_code = "queue_full"


class CancelledError(CallerError):
    """The client went away, or the server is draining, before the request ended."""

    default_code = "cancelled"
    default_hint = "Ask again, unless you took it back: the server ends, or gave up what stood still."


class NormalWorldError(FlexServeError):
    """The normal world (kernel included) refused, lied or is missing a facility."""

    blame = Blame.NORMAL_WORLD
    default_code = "normal_world_refused"


class GrantRefusedError(NormalWorldError):
    """The normal world granted less memory than the request needs to make progress.

    `missing`: bytes without which trying again is in vain; 0: unknown.
    """

    default_code = "memory_refused"

    def __init__(self, message: str, *, hint: str = "", code: str | None = None, missing: int = 0) -> None:
        super().__init__(message, hint=hint, code=code)
        self.missing = missing


class NpuLostError(NormalWorldError):
    """The normal world's NPU is not, or no longer, to be had; the CPU can do the same."""

    default_code = "npu_lost"


class MachineGoneError(NormalWorldError):
    """The machine that the secure world runs on has ended: no other secure world can be started on it."""

    default_code = "machine_gone"


class PeerError(NormalWorldError):
    """The other world broke the protocol or went away."""

    default_code = "peer_failed"


class MonitorError(FlexServeError):
    """The monitor refused a call: the ownership table does not allow it."""

    blame = Blame.MONITOR
    default_code = "monitor_refused"


class IllegalTransitionError(MonitorError):
    """A page transition that the ownership table has no row for; nothing was changed."""

    default_code = "illegal_transition"


class StoredDataError(FlexServeError):
    """A file of the store is damaged, forged, downgraded or for another device."""

    blame = Blame.STORED_DATA
    default_code = "stored_data_bad"


class InternalError(FlexServeError):
    """A bug of ours."""

    blame = Blame.BUG
    default_code = "internal_error"


_FAMILIES: dict[Blame, type[FlexServeError]] = {
    Blame.CALLER: CallerError,
    Blame.NORMAL_WORLD: NormalWorldError,
    Blame.MONITOR: MonitorError,
    Blame.STORED_DATA: StoredDataError,
    Blame.BUG: InternalError,
}

_BY_CODE: dict[str, type[FlexServeError]] = {
    cls.default_code: cls
    for cls in (UnknownModelError, QueueFullError, CancelledError, GrantRefusedError, PeerError)
}


def rebuild(
    blame: Blame, code: str, message: str, hint: str, counts: Mapping[str, int] | None = None
) -> FlexServeError:
    """Return the error that crossed the world boundary, as its own type again."""
    cls = _BY_CODE.get(code)
    if cls is None or cls.blame is not blame:
        cls = _FAMILIES[blame]
    error = cls(message, hint=hint, code=code)
    error.counts = dict(counts or {})
    return error
