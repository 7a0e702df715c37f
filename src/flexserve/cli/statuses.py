"""The exit statuses of all commands."""

from __future__ import annotations

import enum


class Status(enum.IntEnum):
    """How a command ended, for the shell."""

    DONE = 0
    FAILED = 1
    MISUSED = 2
    NOT_SHOWN = 3
    INTERRUPTED = 130


MEANINGS: dict[Status, str] = {
    Status.DONE: "done",
    Status.FAILED: "it failed, and the error says why; or the answer is no: a model is not sound, memory "
    "could not be freed, a server is not what the policy calls good; or whoever reads the output went away",
    Status.MISUSED: "the command line is wrong: nothing was done",
    Status.NOT_SHOWN: "`attack` only: no attack succeeded, but not every one could be shown to be stopped",
    Status.INTERRUPTED: "ended by Ctrl-C, or a question was not answered",
}
