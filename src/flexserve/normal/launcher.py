"""Launches secure worlds: starts the process, shakes hands, says why one ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Sequence

import msgspec

from flexserve.errors import FlexServeError, PeerError
from flexserve.normal.channel import MemoryCounter, WorldChannel, open_channel
from flexserve.normal.process import Command, Started, program_command, start
from flexserve.protocol.failures import revive
from flexserve.protocol.launch import EXIT_CANNOT_START, EXIT_CUT_OFF, SECURE_WORLD, SecureOptions
from flexserve.protocol.statuses import Failure

HANDSHAKE_TIMEOUT = 60.0  # seconds; loading the engine's libraries from a cold disk takes a few
CUT_OFF = "cut_off"  # from a secure world inside: the machine has ended, or its kernel is in the way
TERM_GRACE = 3.0  # seconds between a shutdown that was not heeded, SIGTERM and SIGKILL
_MAX_LINE = 4096  # bytes kept of one line of the secure world's messages
_MAX_TAIL = 20  # lines kept for the report of a death


def secure_command(options: SecureOptions, channel_fd: int, *, program: str = SECURE_WORLD) -> list[str]:
    """Return the command line of a secure world whose channel is descriptor `channel_fd`."""
    options = msgspec.structs.replace(options, channel_fd=channel_fd)
    return program_command(options.words(), program=program)


class SecureProcess:
    """A running secure world: its process, its channel and the last lines it wrote."""

    def __init__(self, started: Started) -> None:
        """Watch a process that was started, from within an event loop."""
        self._process = started.process
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._watch = os.pidfd_open(self._process.pid)
        asyncio.get_running_loop().add_reader(self._watch, self._ended)
        self._tail: deque[str] = deque(maxlen=_MAX_TAIL)
        self._relay = asyncio.create_task(self._relay_messages(), name="secure-messages")
        self.channel: WorldChannel | None = None

    @property
    def pid(self) -> int:
        """The process id: of the secure world itself once it has said hello, of its companion before."""
        return self.channel.welcome.pid if self.channel is not None else self._process.pid

    async def wait(self) -> FlexServeError:
        """Wait for the end of the process and return why it ended, as far as it says."""
        status = await asyncio.shield(self._status)
        await asyncio.wait({self._relay}, timeout=1)  # a grandchild may hold the pipe open
        return self._reason(status)

    async def stop(self, *, drain: float) -> None:
        """Ask for an orderly end within `drain` seconds, then insist. Returns when it is gone."""
        if self.channel is not None:
            self.channel.shut_down(drain=drain)
            await self._ended_within(drain + TERM_GRACE)
        self._signal(signal.SIGTERM)
        if not await self._ended_within(TERM_GRACE):
            self._signal(signal.SIGKILL)
        await asyncio.shield(self._status)
        if self.channel is not None:
            await self.channel.close()
        self._relay.cancel()

    def kill(self) -> None:
        """End it at once; the OS takes all its memory back. Always safe."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)  # which does nothing when it has ended

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._watch)
        os.close(self._watch)
        self._status.set_result(self._process.wait())

    async def _ended_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.shield(self._status)
        return self._status.done()

    async def _relay_messages(self) -> None:
        """Copy the secure world's messages to our standard error, line by line, made printable."""
        reader, loop = asyncio.StreamReader(), asyncio.get_running_loop()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_read_pipe(lambda: protocol, self._process.stdout)
        with contextlib.closing(transport):
            await self._relay_lines(reader)

    async def _relay_lines(self, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await reader.readline()
            except ValueError:  # longer than the reader's limit; it dropped what it had
                continue
            if not line:
                return
            text = "".join(
                char if char.isprintable() else " " for char in line[:_MAX_LINE].decode("utf-8", "replace")
            ).rstrip()
            if text:
                self._tail.append(text)
                if not text.startswith('{"blame"'):  # that one is raised as an error instead
                    sys.stderr.write(f"secure: {text}\n")

    def _reason(self, status: int) -> FlexServeError:
        last = self._tail[-1] if self._tail else "it said nothing"
        if status == EXIT_CANNOT_START:
            with contextlib.suppress(msgspec.MsgspecError, PeerError, IndexError):
                return revive(msgspec.json.decode(self._tail[-1], type=Failure))
        if status == EXIT_CUT_OFF:
            return PeerError(
                f"The secure world was cut off; its last words: {last}.",
                hint="See its messages above.",
                code=CUT_OFF,
            )
        how = f"was ended by {_signal_name(-status)}" if status < 0 else f"exited with status {status}"
        return PeerError(f"The secure world {how}; its last words: {last}.", hint="See its messages above.")


class Launcher:
    """Starts secure worlds by `command`, which gets the channel's descriptor (secure_command).

    They inherit `fds` besides. `early`: a process that was started already, and is the first.
    """

    def __init__(
        self,
        command: Command,
        *,
        fds: Sequence[int] = (),
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
        early: Started | None = None,
    ) -> None:
        self._command = command
        self._fds = fds
        self._handshake_timeout = handshake_timeout
        self._early = early

    async def launch(self, memory: MemoryCounter) -> SecureProcess:
        """Start a secure world and shake hands.

        Raises the error that the secure world itself gave as its reason not to start, or
        PeerError when it died or was silent, or NormalWorldError when it could not be run;
        nothing of it is left then.
        """
        started, self._early = self._early or start(self._command, self._fds), None
        process = SecureProcess(started)
        try:
            process.channel = await self._shake_hands(started.channel, process, memory)
        except BaseException:
            process.kill()
            await process.stop(drain=0)
            raise
        return process

    async def _shake_hands(
        self, sock: socket.socket, process: SecureProcess, memory: MemoryCounter
    ) -> WorldChannel:
        ended = asyncio.ensure_future(process.wait())
        try:
            return await open_channel(sock, memory, timeout=self._handshake_timeout)
        except PeerError as error:
            # The channel of a process that gave up closes first; its own reason is the better one.
            await asyncio.wait({ended}, timeout=1)
            raise (ended.result() if ended.done() else error) from None
        finally:
            ended.cancel()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
