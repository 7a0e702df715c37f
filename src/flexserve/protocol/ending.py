"""How a program of the launch contract ends: what it says last, and with which status."""

from __future__ import annotations

import os
import sys
import threading
from typing import NoReturn

from flexserve.errors import FlexServeError


def say_why_not(error: FlexServeError) -> None:
    """Say why this program cannot start, as the contract has it (protocol.launch)."""
    import msgspec

    from flexserve.protocol.failures import failure_of

    sys.stderr.write(msgspec.json.encode(failure_of(error)).decode() + "\n")


def leave(status: int) -> NoReturn:
    """End the process, not through the interpreter's end: threads may be inside C."""
    sys.stderr.flush()
    os._exit(status)


def end(why: str, status: int = 1) -> NoReturn:
    """End the process with these last words."""
    sys.stderr.write(f"{why}\n")
    leave(status)


def end_with_any_thread() -> None:
    """Have the process end when one of its threads dies: half of it would look alive and be useless.

    It says which thread and which type of exception: the text of one that nobody foresaw may quote a prompt.
    """
    threading.excepthook = _end_with


def _end_with(death: threading.ExceptHookArgs) -> None:
    name = death.thread.name if death.thread is not None else "a thread"
    foreseen = isinstance(death.exc_value, FlexServeError)
    end(f"{name} died of {death.exc_type.__name__}{f': {death.exc_value}' if foreseen else ''}")
