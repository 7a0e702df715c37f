"""A process that traces another from its first instruction, so that nobody else can attach to it.

    flexserve.platforms.linux.companion PROGRAM ARGUMENT…      (run by flexserve.interpreter)

A process has one tracer at most. The program is seized before it is run, its threads as they begin; the
kernel ends it when the companion is gone. The program traces the companion in turn, or somebody could
attach there and drive it. It costs a stop for each signal and each new thread, none for system calls.

Signals to the companion go on to the program; its end is the companion's. Where tracing is refused the
program runs all the same, and whoever looks at its tracer (`attack_vectors`) sees that there is none.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Sequence

from flexserve import interpreter
from flexserve.platforms.linux.hardening import die_with_parent, stay_hidden

_SEIZE, _CONT, _LISTEN = 0x4206, 7, 0x4208
_TRACE_CLONE, _EXIT_KILL = 0x8, 0x100000
_EVENT_STOP = 128
_WALL = 0x40000000
_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PTRACER = 0x59616D61

_libc = ctypes.CDLL(None, use_errno=True)


def command(program: Sequence[str]) -> list[str]:
    """Return the command line of a companion of `program`."""
    return interpreter.command(__name__, *program)


def main() -> None:
    """Run the program of the command line; end as it ends."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # a signal would stop it: it is traced
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    die_with_parent(signal.SIGKILL)
    (seized, told), (go, start) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        _be_traced_and_run(sys.argv[1:], told, go)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in (seized, start):
            with contextlib.suppress(OSError):
                os.close(int(name))
    _libc.prctl(ctypes.c_int(_PR_SET_PTRACER), ctypes.c_ulong(child), *[ctypes.c_ulong(0)] * 3)
    os.write(start, b"1")
    os.read(seized, 1)
    _ptrace(_SEIZE, child, _TRACE_CLONE | _EXIT_KILL)
    stay_hidden()
    os.write(start, b"2")
    os.close(start)
    _end_like(_attend(child))


def _be_traced_and_run(words: list[str], told: int, go: int) -> None:
    """The child: trace the parent, wait to be traced, become the program."""
    try:
        os.read(go, 1)
        _ptrace(_SEIZE, os.getppid(), 0)
        os.write(told, b"1")
        os.read(go, 1)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execv(words[0], words)  # noqa: S606
    except BaseException as error:  # never back into the companion's code
        sys.stderr.write(f"{words[0]} cannot be run: {type(error).__name__}\n")
        sys.stderr.flush()
    os._exit(127)


def _attend(child: int) -> int:
    """Let the child and its threads go on whenever they stop, until it ends; return its wait status."""
    while True:
        number = signal.sigwait({signal.SIGCHLD, *_FORWARDED})
        if number != signal.SIGCHLD:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
            continue
        while True:
            try:
                thread, status = os.waitpid(-1, _WALL | os.WNOHANG)
            except ChildProcessError:
                return 0
            if thread == 0:
                break
            if os.WIFSTOPPED(status):
                _let_go_on(thread, status)
            elif thread == child:
                return status


def _let_go_on(thread: int, status: int) -> None:
    event, number = status >> 16, os.WSTOPSIG(status)
    if event == _EVENT_STOP and number in _STOPS:
        _ptrace(_LISTEN, thread, 0)
    else:
        _ptrace(_CONT, thread, 0 if event else number)


def _end_like(status: int) -> None:
    """End with an exit status, or of a signal."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


def _ptrace(request: int, process: int, data: int) -> bool:
    """Make one request; return whether the kernel did it. It does not when the process is gone."""
    words = (ctypes.c_long(request), ctypes.c_long(process), ctypes.c_void_p(0), ctypes.c_void_p(data))
    return bool(_libc.ptrace(*words) == 0)


if __name__ == "__main__":
    main()
