"""Where a server listens, and whether anybody does. Imports little: `run` looks here before anything else."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

from flexserve.errors import NormalWorldError

CONNECT_TIMEOUT = 3.0  # seconds; the server is on this machine, or near
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # heard on all, asked on loopback


class NoServerError(NormalWorldError):
    """Nobody listens at the address."""

    default_code = "no_server"


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, and the key to send it. The Unix socket, if there is one, is preferred."""

    host: str
    port: int
    unix_socket: Path | None = None
    key: str = dataclasses.field(default="", repr=False)

    def __str__(self) -> str:
        return f"unix:{self.unix_socket}" if self.unix_socket else self.url

    @property
    def url(self) -> str:
        """The base of the server's URLs."""
        if self.unix_socket:
            return "http://localhost"
        host = self.connected
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def connected(self) -> str:
        """The host to connect to."""
        return _ANY_ADDRESS.get(self.host, self.host)

    def is_silent(self) -> bool:
        """Return whether it is certain that nobody listens there. Sends nothing."""
        try:
            if self.unix_socket:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(str(self.unix_socket))
            else:
                socket.create_connection((self.connected, self.port), CONNECT_TIMEOUT).close()
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except (OSError, UnicodeError):
            pass
        return False
