"""Hands on a machine that another process runs: its reset button, and the line to the agent of its guest."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from flexserve.attacks.attempt import Pointless
from flexserve.platforms.linux import kernel_views

_EMULATOR = "qemu-system-aarch64"
_SECONDS = 30.0
_AGENT = re.compile(rb"socket,id=agent,fd=(\d+)")  # as emulator.machine tells the emulator
# Of the kernel's interface for sockets' diagnosis (unix_diag.h): request and answer, after netlink's header.
_NETLINK, _SOCK_DIAG, _BY_FAMILY, _REQUEST = struct.Struct("<IHHII"), 4, 20, 1
_ASKED, _ALL, _SHOW_PEER, _ANY = struct.Struct("<BBHIIIQ"), 0xFFFF_FFFF, 4, 0xFFFF_FFFF_FFFF_FFFF
_SAID, _ATTRIBUTE, _PEER = struct.Struct("<BBBBIQ"), struct.Struct("<HHI"), 2


class ResetButton:
    """Of whichever machine was started last by an emulator that is found in the folder `programs`.

    A machine that was reset or switched off stands still then, until `let_go`.
    """

    def __init__(self, programs: Path) -> None:
        self.programs, self.emulator = programs, programs / _EMULATOR
        self._socket = programs / "button"

    @classmethod
    @contextlib.contextmanager
    def made(cls) -> Iterator[Self]:
        """Have an emulator in a folder of its own for the length of the block, the same with a button."""
        real = shutil.which(_EMULATOR)
        if real is None:
            raise Pointless(f"there is no {_EMULATOR}")
        with tempfile.TemporaryDirectory(prefix="flexserve-") as folder:
            button = cls(Path(folder))
            more = f'-no-shutdown -qmp "unix:{button._socket},server=on,wait=off"'
            button.emulator.write_text(f'#!/bin/sh\nexec "{real}" "$@" {more}\n')
            button.emulator.chmod(0o700)
            yield button

    def press(self) -> None:
        """Reset the machine. It is not asked."""
        self._say("system_reset")

    def await_end(self) -> None:
        """Wait until the machine was reset or switched off. Raises Pointless when it is not."""
        deadline = time.monotonic() + _SECONDS
        while self._say("query-status")["status"] != "shutdown":
            if time.monotonic() > deadline:
                raise Pointless("the machine does not end")
            time.sleep(0.02)

    def let_go(self) -> None:
        """Have the emulator end."""
        self._say("quit")

    def _say(self, command: str) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(_SECONDS)
            line.connect(str(self._socket))
            with line.makefile("rw") as said:
                said.readline()  # it greets
                for each in ("qmp_capabilities", command):
                    said.write(json.dumps({"execute": each}) + "\n")
                    said.flush()
                    while "return" not in (answer := json.loads(said.readline())):
                        pass  # it tells of something by itself
        return dict(answer["return"])


@contextlib.contextmanager
def agent_of(server: int, emulator: int) -> Iterator[socket.socket]:
    """Open the line by which the process `server` asks the agent of the guest, for the length of the block.

    Raises PermissionError for who may not look into it, Pointless when it has none.
    """
    found = _AGENT.search(Path(f"/proc/{emulator}/cmdline").read_bytes())
    if found is None:
        raise Pointless("the machine has no agent")
    peer = _peer_of(_inode(emulator, int(found[1])))
    for link in Path(f"/proc/{server}/fd").iterdir():
        with contextlib.suppress(OSError):
            if _inode(server, int(link.name)) == peer:
                with socket.socket(fileno=kernel_views.descriptor(server, int(link.name))) as line:
                    yield line
                return
    raise Pointless("the server has no line to the agent")


def _inode(pid: int, descriptor: int) -> int:
    return os.stat(f"/proc/{pid}/fd/{descriptor}").st_ino


def _peer_of(inode: int) -> int:
    """Return the socket at the other end of a local one, by their inodes."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
        asked = _ASKED.pack(socket.AF_UNIX, 0, 0, _ALL, inode, _SHOW_PEER, _ANY)
        kernel.send(_NETLINK.pack(_NETLINK.size + len(asked), _BY_FAMILY, _REQUEST, 1, 0) + asked)
        answer: Any = kernel.recv(1 << 16)
    attributes = answer[_NETLINK.size + _SAID.size :]
    if len(attributes) < _ATTRIBUTE.size or _ATTRIBUTE.unpack_from(attributes)[1] != _PEER:
        raise Pointless("the kernel does not tell who is at the other end")
    return int(_ATTRIBUTE.unpack_from(attributes)[2])
