"""The process of a secure world, as it is started.

It gets no descriptor but null, its own messages' pipe, its end of the channel and those of the machine
it runs on, where that is another; an environment of ours (`environment`), with nothing of the caller's but
LANG; and its own session, so that Ctrl-C in the terminal reaches only the normal world, which then asks it to
drain.

This module imports little: `start_early` runs before the command line has imported anything else. Both worlds
import at the same time then.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
from collections.abc import Callable, Sequence

from flexserve import interpreter
from flexserve.errors import NormalWorldError
from flexserve.platforms.linux import companion
from flexserve.protocol.launch import SECURE_WORLD

_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    # Else llama.cpp starts a debugger on the secure process when it aborts.
    "GGML_NO_BACKTRACE": "1",
    # numpy's threads would exist before the sandbox does, and so be outside of it.
    "OPENBLAS_NUM_THREADS": "1",
}

Command = Callable[[int], Sequence[str]]  # from the descriptor of the channel to the words


@dataclasses.dataclass(slots=True)
class Started:
    """A process that runs, and our end of its channel. `options`: where it still waits for its own."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    options: socket.socket | None = None

    def tell(self, words: Sequence[str]) -> None:
        """Give it the options that it waits for. Raises NormalWorldError when it is gone."""
        if self.options is None:
            return
        options, self.options = self.options, None
        with options:
            try:
                options.sendall("\0".join(words).encode(errors="surrogateescape"))
            except OSError as error:
                raise _not_started(error) from None

    def discard(self) -> None:
        """End it. Always safe."""
        self.process.kill()
        self.process.wait()
        self.channel.close()
        if self.options is not None:
            self.options.close()
        if self.process.stdout is not None:
            self.process.stdout.close()


def program_command(words: Sequence[str], *, program: str = SECURE_WORLD) -> list[str]:
    """Return the command line of a secure world with `words`, beside a companion.

    No PYTHON* variable, no user site, no current directory and no compiled copy decides what code runs
    there (`interpreter`); the package is found where it was installed.
    """
    return companion.command(interpreter.command(program, *words))


def environment() -> dict[str, str]:
    """Return the environment of a secure world: nothing in it is the caller's but LANG."""
    language = os.environ.get("LANG")
    return _ENVIRONMENT | ({"LANG": language} if language is not None else {})


def start(command: Command, fds: Sequence[int] = ()) -> Started:
    """Start a process that inherits `fds` besides its end of the channel.

    Raises NormalWorldError. The kernel ends it with the thread that calls this.
    """
    ours, theirs = _socket_pair()
    with theirs:
        try:
            return Started(_run(command(theirs.fileno()), (theirs.fileno(), *fds)), ours)
        except BaseException:
            ours.close()
            raise


def start_early() -> Started:
    """Start a secure world that is told its options later (`Started.tell`). Raises as `start`."""
    options, theirs = _socket_pair()
    with theirs:
        words = ["--options-fd", str(theirs.fileno())]
        try:
            started = start(lambda fd: program_command(["--channel-fd", str(fd), *words]), (theirs.fileno(),))
        except BaseException:
            options.close()
            raise
    started.options = options
    return started


def _run(words: Sequence[str], fds: Sequence[int]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=fds,
            start_new_session=True,
            env=environment(),
            bufsize=0,
        )
    except OSError as error:
        raise _not_started(error) from None


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair()
    except OSError as error:
        raise NormalWorldError(
            f"The secure world's channel cannot be made: {error.strerror}.",
            hint="Raise the limit on open files.",
        ) from None


def _not_started(error: OSError) -> NormalWorldError:
    return NormalWorldError(
        f"The secure world cannot be started: {error.strerror}.", hint="Install flexserve again."
    )
