"""Where this user's files lie: configuration, sealed models, sockets, and what can be made again."""

from __future__ import annotations

import os
from pathlib import Path

from flexserve.private_files import is_private

_MAX_SOCKET_PATH = 107  # bytes: the kernel's
_THIS_MACHINE = ("127.0.0.1", "localhost", "::1", "0.0.0.0", "::", "none")  # noqa: S104  # hosts of a server


def config_folder() -> Path:
    """Return where this user's configuration and device key live."""
    return _xdg("XDG_CONFIG_HOME", ".config") / "flexserve"


def data_folder() -> Path:
    """Return where this user's sealed models live."""
    return _xdg("XDG_DATA_HOME", ".local/share") / "flexserve"


def cache_folder() -> Path:
    """Return where what can be made again lives (synthetic models)."""
    return _xdg("XDG_CACHE_HOME", ".cache") / "flexserve"


def default_socket(host: str, port: int) -> Path | None:
    """Return the Unix socket that a server at `host` and `port` has unasked: this user's alone.

    None where it has none: for another machine's address, for a port that is not known beforehand, and
    for a path that is too long.
    """
    if not port or host not in _THIS_MACHINE:
        return None
    path = _runtime_folder() / f"{port}.sock"
    return path if len(os.fsencode(path)) <= _MAX_SOCKET_PATH else None


def has_server() -> bool:
    """Return whether a server of this user seems to run: there is a socket that it has unasked."""
    return any(_runtime_folder().glob("*.sock"))


def _runtime_folder() -> Path:
    """Return where sockets lie: the session's folder for such, or else a private one among the data."""
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    for folder in (Path(given), Path(f"/run/user/{os.geteuid()}")):
        if folder.is_absolute() and is_private(folder):
            return folder / "flexserve"
    return data_folder() / "run"


def _xdg(variable: str, otherwise: str) -> Path:
    value = os.environ.get(variable, "")
    return Path(value) if value.startswith("/") else Path.home() / otherwise  # relative: to be ignored
