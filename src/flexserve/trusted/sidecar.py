"""Programs of ours that a secure process starts beside itself, with one socket between them.

They are started before the secure process imports what it needs itself: on a machine of several cores all of
them import at the same time. So this module imports little.
"""

from __future__ import annotations

import socket
import subprocess

from flexserve import interpreter


class Sidecar:
    """A running program: `pid`, and our end of the socket."""

    def __init__(self, module: str, *, kind: int = socket.SOCK_STREAM) -> None:
        """Start `module` with the other end's descriptor as `--fd`, and no environment."""
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, kind)
        with theirs:
            self._process = subprocess.Popen(
                interpreter.command(module, "--fd", str(theirs.fileno())),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={},
            )
        self.pid = self._process.pid

    def wait(self) -> None:
        """Wait for its end."""
        self._process.wait()


def start_key_holder() -> Sidecar:
    """Start a holder of a device key (flexserve.trusted.store.key_holder); HeldKey tells it which."""
    return Sidecar("flexserve.trusted.store.key_holder", kind=socket.SOCK_SEQPACKET)


def start_helper() -> Sidecar:
    """Start the helper that runs strangers' code (flexserve.trusted.text.rendering.helper)."""
    return Sidecar("flexserve.trusted.text.rendering.helper")
