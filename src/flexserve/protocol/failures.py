"""Errors on their way out of the secure world, and what they are again on the other side."""

from __future__ import annotations

from flexserve.errors import Blame, FlexServeError, InternalError, PeerError, rebuild
from flexserve.protocol.statuses import Failure

_LIMIT = 2000  # characters of a message; the protocol allows 2048


def foreseen(error: BaseException) -> FlexServeError:
    """Return `error`, or of one that nobody foresaw its type only: its text may quote a prompt."""
    if isinstance(error, FlexServeError):
        return error
    return InternalError(
        f"Unexpected {type(error).__name__} in the secure world.", hint="Please report this as a bug."
    )


def failure_of(error: FlexServeError) -> Failure:
    """Return `error` as a message."""
    return Failure(
        error.blame.value,
        error.code,
        error.message[:_LIMIT],
        error.hint[:_LIMIT],
        tuple(error.counts.items()),
    )


def revive(failure: Failure) -> FlexServeError:
    """Return the error that crossed the boundary. Raises PeerError for a blame nobody knows."""
    try:
        blame = Blame(failure.blame)
    except ValueError:
        raise PeerError(
            "The secure world sent an error that blames nobody known.", hint="Restart the secure world."
        ) from None
    return rebuild(blame, failure.code, failure.message, failure.hint, dict(failure.counts))
