"""The command line: composition root, with one module per noun. Heavy modules load when a command runs.

Trusted with: what the person at the keyboard does.
Sees: what that person types.
"""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Run the command line on this process's arguments and exit: 0 done, 1 failed, 2 misused."""
    from flexserve.cli.app import app

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character is no reason to fail
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is not UTF-8 is refused later, in words
    app(prog_name="flexserve")
