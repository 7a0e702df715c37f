"""Runs a program that must not outlive the thread that starts it: `python -I -m … PARENT SIGNAL PROGRAM …`.

A process can ask the kernel only for itself to be killed when its parent is gone, and keeps that
across exec. So the one that is started asks, and then becomes the program.
"""

from __future__ import annotations

import os
import signal
import sys

from flexserve.platforms.linux.hardening import die_with_parent


def command(program: str, *arguments: str, by: signal.Signals = signal.SIGKILL) -> list[str]:
    """Return the command line that runs `program` for as long as the calling thread lives; `by` ends it."""
    return [sys.executable, "-I", "-m", __spec__.name, str(os.getpid()), str(by.value), program, *arguments]


def main() -> None:
    """Become the program."""
    parent, by, program, *arguments = sys.argv[1:]
    die_with_parent(int(by))
    if os.getppid() == int(parent):  # else it died before the kernel was asked
        os.execvp(program, [program, *arguments])  # noqa: S606


if __name__ == "__main__":
    main()
