"""What of a request the trusted application can do; all else is refused by name, and done by the host."""

from __future__ import annotations

from flexserve.errors import CallerError
from flexserve.protocol.requests import Generate
from flexserve.trusted.store.manifest import Manifest


def require_open(manifest: Manifest) -> None:
    """Raise CallerError (code "secure_world_inside") for a model that the application cannot open."""
    if manifest.vendor is not None:
        raise cannot("open a vendor's model")
    if manifest.adapts is not None:
        raise cannot("use an adapter")


def require(message: object) -> None:
    """Raise CallerError (code "secure_world_inside") for what the application cannot do."""
    if isinstance(message, Generate) and message.rounding != 1:
        raise cannot("round the length of an answer")


def cannot(what: str) -> CallerError:
    """Return the error for what the host's secure world can do, and this one cannot."""
    return CallerError(
        f"The secure world inside the machine cannot {what}.",
        hint="Start the server, or the command, with `--secure-world host`: that one can.",
        code="secure_world_inside",
    )
