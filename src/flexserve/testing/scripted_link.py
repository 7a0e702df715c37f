"""Ways to put a scripted world behind the normal world, and a memory to watch while doing so."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
import sys
from typing import Self

import msgspec

from flexserve.errors import FlexServeError, PeerError
from flexserve.normal.channel import MemoryCounter, WorldChannel, open_channel
from flexserve.normal.process import Command
from flexserve.platforms.ports import MemorySample
from flexserve.testing.script import Script
from flexserve.testing.scripted_world import ScriptedWorld
from flexserve.units import GIB


def scripted_command(script: Script) -> Command:
    """Return the command of a scripted world as a process of its own, for normal.launcher.Launcher."""
    text = msgspec.json.encode(script).decode()

    def command(channel_fd: int) -> list[str]:
        module = "flexserve.testing.scripted_world"
        return [sys.executable, "-I", "-m", module, "--channel-fd", str(channel_fd), "--script", text]

    return command


class ScriptedLink:
    """A scripted world in this event loop, behind a real socket: a normal.supervisor.SecureWorld.

    `launch` fits the supervisor and can be called again after a death: `scripted` is the latest
    world, `launches` counts them.
    """

    def __init__(self, script: Script) -> None:
        self._script = script
        self._task: asyncio.Task[None] | None = None
        self.channel: WorldChannel | None = None
        self.scripted: ScriptedWorld
        self.launches = 0

    @property
    def pid(self) -> int:
        """This very process."""
        return os.getpid()

    async def launch(self, memory: MemoryCounter) -> Self:
        """Start (again) and shake hands. Raises what open_channel raises."""
        self.launches += 1
        ours, theirs = socket.socketpair()
        self.scripted = ScriptedWorld(theirs, self._script)
        self._task = asyncio.create_task(self.scripted.run())
        self.channel = await open_channel(ours, memory, timeout=5)
        return self

    async def wait(self) -> FlexServeError:
        """Wait for the end of the scripted world."""
        assert self._task is not None
        await asyncio.wait({self._task})
        return PeerError("The scripted world ended.")

    async def stop(self, *, drain: float) -> None:
        """Ask it to drain, and close."""
        assert self._task is not None
        assert self.channel is not None
        self.channel.shut_down(drain=drain)
        await asyncio.wait({self._task}, timeout=drain + 5)
        self.kill()
        await self.channel.close()

    def kill(self) -> None:
        """End it at once, as a process that dies would: its socket closes."""
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(OSError):
            self.scripted.hang_up()


@dataclasses.dataclass
class AdjustableMemory:
    """A normal world's memory (ports.NormalMemory) whose readings a test sets. Bytes and percent."""

    total: int = 64 * GIB
    available: int = 48 * GIB
    stall: float | None = None
    resident: int = 0
    free: int | None = None
    refaulted: int | None = None

    def sample(self) -> MemorySample:
        """Return the readings as they are set."""
        return MemorySample(self.total, self.available, self.stall, self.free, self.refaulted)

    def charged(self, pid: int) -> int:
        """Return `resident`, whatever the process."""
        return self.resident if pid else 0
