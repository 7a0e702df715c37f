"""Errors on their way out of the secure world."""

from __future__ import annotations

from flexserve.errors import FlexServeError, InternalError
from flexserve.protocol.messages import Failure

_LIMIT = 2000  # characters of a message; the protocol allows 2048


def failure_of(error: BaseException) -> Failure:
    """Return `error` as a message. Of an unforeseen one only its type: its text may quote a prompt."""
    if not isinstance(error, FlexServeError):
        error = InternalError(
            f"Unexpected {type(error).__name__} in the secure world.", hint="Please report this as a bug."
        )
    return Failure(error.blame.value, error.code, error.message[:_LIMIT], error.hint[:_LIMIT])
