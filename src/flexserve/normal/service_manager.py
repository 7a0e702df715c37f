"""What the service manager that started this process is told, by systemd's protocol (sd_notify)."""

from __future__ import annotations

import os
import socket
import time


def tell(state: str) -> None:
    """Send `state`, as "READY=1", to the service manager; nothing if none wants to know, or it is gone."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.sendto(state.encode(), address)
        except OSError:
            return


def tell_reloading() -> None:
    """Say that the configuration is being read again; "READY=1" ends it."""
    tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
