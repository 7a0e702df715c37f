"""Who is at the other end of a local connection, as the kernel knows it."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from flexserve.errors import PeerError

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_LISTENING = "0A"
_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")

Endpoint = tuple[bytes, int]  # a packed address, of 16 bytes, and a port


def user_of_unix_peer(sock: socket.socket) -> int:
    """Return the user of the program that connected, or listened, at the other end of a Unix socket."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(data)[1])


def is_trusted(user: int) -> bool:
    """Return whether `user` may hear and ask what this process says and serves: root may anyway."""
    return user in (0, os.geteuid())


def check_server(sock: socket.socket) -> None:
    """Raise PeerError when a program of another user listens at the local address `sock` is connected to.

    An address of another machine is let through: there is nobody to ask whose it is.
    """
    if sock.family == socket.AF_UNIX:
        users = {user_of_unix_peer(sock)}
    else:
        address, port = sock.getpeername()[:2]
        if not _unmapped(address).is_loopback:
            return
        users = set(_users_of_server((_packed(address), port), _endpoint(sock.getsockname())))
    if not users:
        raise _stranger("cannot be told: this system does not list who listens there")
    if not all(map(is_trusted, users)):
        raise _stranger("belongs to another user")


def _stranger(why: str) -> PeerError:
    return PeerError(
        f"The server at this address {why}. It was sent neither key nor prompt.",
        hint="Choose your own server's address with --port or --unix-socket.",
        code="server_of_another_user",
    )


def _users_of_server(server: Endpoint, client: Endpoint) -> Iterator[int]:
    """Yield the users of all sockets that may be the one at `server` that `client` is connected to.

    A connection that was not accepted yet has no user of its own (it is listed as root's), so who listens
    counts as well. Without a listener nothing is yielded: a connection that outlives it is nobody's.
    """
    listeners: list[int] = []
    connections: list[int] = []
    for local, remote, state, user in _sockets():
        if local[1] != server[1]:
            continue
        if state == _LISTENING and (local[0] == server[0] or _is_any(local[0])):
            listeners.append(user)
        elif (local, remote) == (server, client):
            connections.append(user)
    if listeners:
        yield from listeners
        yield from connections


def _sockets() -> Iterator[tuple[Endpoint, Endpoint, str, int]]:
    """Yield (local, remote, state, user) of this network's TCP sockets."""
    for table in _TABLES:
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            yield _parsed(fields[1]), _parsed(fields[2]), fields[3], int(fields[7])


def _parsed(text: str) -> Endpoint:
    """Return the endpoint that /proc has as 32-bit words in hexadecimal, in the machine's order of bytes."""
    words, _, port = text.partition(":")
    data = b"".join(struct.pack("=I", int(words[at : at + 8], 16)) for at in range(0, len(words), 8))
    return _packed(str(ipaddress.ip_address(data))), int(port, 16)


def _endpoint(name: tuple[str, int]) -> Endpoint:
    return _packed(name[0]), name[1]


def _packed(address: str) -> bytes:
    """Return the 16 bytes of an address; one of IPv4 as IPv6 has it."""
    packed = _unmapped(address).packed
    return packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed


def _unmapped(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def _is_any(packed: bytes) -> bool:
    return packed in (bytes(16), bytes(10) + b"\xff\xff" + bytes(4))
