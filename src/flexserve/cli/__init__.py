"""The command line: composition root, with one module per noun. Heavy modules load when a command runs.

Trusted with: what the person at the keyboard does.
Sees: what that person types.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flexserve.normal.process import Started


def main() -> None:
    """Run the command line on this process's arguments and exit: 0 done, 1 failed, 2 misused."""
    early = _start_early(sys.argv[1:])
    from flexserve.cli.app import app

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character is no reason to fail
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is not UTF-8 is refused later, in words
    app(prog_name="flexserve", obj=early)


def _start_early(words: Sequence[str]) -> Started | None:
    """Start a secure world for a command that is likely to need one: it imports while the command does.

    One that is not needed ends with this process at the latest.
    """
    if not words or words[0] not in ("run", "chat", "serve") or {"--help", "-h", "trustzone"} & {*words}:
        return None
    from flexserve.errors import FlexServeError
    from flexserve.folders import has_server
    from flexserve.normal.process import start_early

    if words[0] != "serve" and has_server():
        return None
    with contextlib.suppress(FlexServeError):  # the command will say so
        return start_early()
    return None
