"""Which right a request needs, by its method and its path."""

from __future__ import annotations

from flexserve.normal.api.keys import Right

_READING = ("GET", "HEAD", "OPTIONS")


def needed(method: str, path: str) -> Right:
    """Return the right that a request needs, whether there is such a route or not.

    Reading changes nothing; what is posted asks a model, but for what takes memory back.
    """
    if method in _READING:
        return Right.READ
    if method != "POST":
        return Right.ADMIN
    return Right.RECALL if path == "/recall" or path.startswith("/memory/") else Right.ASK
