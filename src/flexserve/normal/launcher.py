"""Starts a secure world: a process with an empty environment, a session of its own and one socket.

The process gets no descriptor but null, its own messages' pipe, its end of the channel and those of
the machine it runs on, where that is another; an environment of ours (`environment`), with nothing of
the caller's but LANG; and its own session, so that Ctrl-C in the terminal reaches only the normal
world, which then asks it to drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from flexserve.errors import FlexServeError, NormalWorldError, PeerError
from flexserve.normal.answer import revive
from flexserve.normal.channel import MemoryCounter, WorldChannel, open_channel
from flexserve.platforms.linux import companion
from flexserve.protocol.launch import EXIT_CANNOT_START, SECURE_WORLD, SecureOptions
from flexserve.protocol.statuses import Failure

HANDSHAKE_TIMEOUT = 60.0  # seconds; loading the engine's libraries from a cold disk takes a few
TERM_GRACE = 3.0  # seconds between a shutdown that was not heeded, SIGTERM and SIGKILL
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    # Else llama.cpp starts a debugger on the secure process when it aborts.
    "GGML_NO_BACKTRACE": "1",
    # numpy's threads would exist before the sandbox does, and so be outside of it.
    "OPENBLAS_NUM_THREADS": "1",
}
_MAX_LINE = 4096  # bytes kept of one line of the secure world's messages
_MAX_TAIL = 20  # lines kept for the report of a death

Command = Callable[[int], Sequence[str]]


def secure_command(options: SecureOptions, channel_fd: int, *, program: str = SECURE_WORLD) -> list[str]:
    """Return the command line of a secure world whose channel is descriptor `channel_fd`.

    `-I`: no PYTHON* variable, no user site and no current directory decides what code runs
    there; the package is found where it was installed.
    """
    options = msgspec.structs.replace(options, channel_fd=channel_fd)
    return companion.command([sys.executable, "-I", "-m", program, *options.words()])


def environment() -> dict[str, str]:
    """Return the environment of a secure world: nothing in it is the caller's but LANG."""
    language = os.environ.get("LANG")
    return _ENVIRONMENT | ({"LANG": language} if language is not None else {})


class SecureProcess:
    """A running secure world: its process, its channel and the last lines it wrote."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._tail: deque[str] = deque(maxlen=_MAX_TAIL)
        self._relay = asyncio.create_task(self._relay_messages(), name="secure-messages")
        self.channel: WorldChannel | None = None

    @property
    def pid(self) -> int:
        """The process id: of the secure world itself once it has said hello, of its companion before."""
        return self.channel.welcome.pid if self.channel is not None else self._process.pid

    async def wait(self) -> FlexServeError:
        """Wait for the end of the process and return why it ended, as far as it says."""
        status = await self._process.wait()
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
        await self._process.wait()
        if self.channel is not None:
            await self.channel.close()
        self._relay.cancel()

    def kill(self) -> None:
        """End it at once; the OS takes all its memory back. Always safe."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _ended_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._process.wait()
        return self._process.returncode is not None

    async def _relay_messages(self) -> None:
        """Copy the secure world's messages to our standard error, line by line, made printable."""
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
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
        how = f"was ended by {_signal_name(-status)}" if status < 0 else f"exited with status {status}"
        return PeerError(f"The secure world {how}; its last words: {last}.", hint="See its messages above.")


class Launcher:
    """Starts secure worlds by `command`, which gets the channel's descriptor (secure_command).

    They inherit `fds` besides.
    """

    def __init__(
        self, command: Command, *, fds: Sequence[int] = (), handshake_timeout: float = HANDSHAKE_TIMEOUT
    ) -> None:
        self._command = command
        self._fds = fds
        self._handshake_timeout = handshake_timeout

    async def launch(self, memory: MemoryCounter) -> SecureProcess:
        """Start a secure world and shake hands.

        Raises the error that the secure world itself gave as its reason not to start, or
        PeerError when it died or was silent, or NormalWorldError when it could not be run;
        nothing of it is left then.
        """
        ours, theirs = _socket_pair()
        try:
            with theirs:
                process = SecureProcess(await self._spawn(theirs.fileno()))
        except BaseException:
            ours.close()
            raise
        try:
            process.channel = await self._shake_hands(ours, process, memory)
        except BaseException:
            process.kill()
            await process.stop(drain=0)
            raise
        return process

    async def _spawn(self, channel_fd: int) -> asyncio.subprocess.Process:
        try:
            return await asyncio.create_subprocess_exec(
                *self._command(channel_fd),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(channel_fd, *self._fds),
                start_new_session=True,
                env=environment(),
            )
        except OSError as error:
            raise NormalWorldError(
                f"The secure world cannot be started: {error.strerror}.", hint="Install flexserve again."
            ) from None

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


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair()
    except OSError as error:
        raise NormalWorldError(
            f"The secure world's channel cannot be made: {error.strerror}.",
            hint="Raise the limit on open files.",
        ) from None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
