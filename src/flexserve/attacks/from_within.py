"""Code that has taken over the engine: each try of `inside`, without the sandbox and in it."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Callable
from typing import Protocol

from flexserve import interpreter
from flexserve.attacks import inside
from flexserve.attacks.attempt import Gained, Pointless
from flexserve.attacks.target import Target
from flexserve.normal.process import environment


class Attacked(Protocol):
    """A scene with files that a secure world has."""

    @property
    def target(self) -> Target:
        """The store and the device's key."""


def read_key_from_within(scene: Attacked) -> str:
    """Take over the engine and read the device's key."""
    return _try_from_within(scene, "read_key")


def find_key_from_within(scene: Attacked) -> str:
    """Take over the engine and look for the device's key in all its memory."""
    return _try_from_within(scene, "find_key", missed="neither the key nor what is derived from it is there")


def forge_model_from_within(scene: Attacked) -> str:
    """Take over the engine and have a model signed that nobody added."""
    return _try_from_within(scene, "forge_model", missed="the key's holder signs no such thing")


def reach_others_from_within(scene: Attacked) -> str:
    """Take over the engine and signal, slow down or pin another process of its user."""
    return _try_from_within(scene, "reach_others")


def run_program_from_within(scene: Attacked) -> str:
    """Take over the engine and start a program."""
    return _try_from_within(scene, "run_program")


def fork_from_within(scene: Attacked) -> str:
    """Take over the engine and make a process that outlives it."""
    return _try_from_within(scene, "fork_process")


def connect_from_within(scene: Attacked) -> str:
    """Take over the engine and open a connection."""
    return _try_from_within(scene, "connect_out")


def run_bytes_from_within(scene: Attacked) -> str:
    """Take over the engine and make memory executable."""
    return _try_from_within(scene, "run_bytes")


ATTACKS: tuple[Callable[[Attacked], str], ...] = (
    read_key_from_within,
    find_key_from_within,
    forge_model_from_within,
    reach_others_from_within,
    run_program_from_within,
    fork_from_within,
    connect_from_within,
    run_bytes_from_within,
)


def _try_from_within(scene: Attacked, name: str, *, missed: str = "the kernel refuses it") -> str:
    """Make a try of `inside` without the sandbox, where it must succeed, then in it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        prints = [inside.print_of(secret) for secret in scene.target.secrets()]
        words = [name, str(scene.target.root), str(listener.getsockname()[1]), *prints]
        if _status_within("--open", *words) != inside.REACHED:
            raise Pointless("it fails without the sandbox, too")
        status = _status_within(*words)
    if status == inside.REACHED:
        raise Gained("the sandbox lets it")
    if status == -signal.SIGSYS:
        return "the kernel ends the process for the call"
    if status != inside.MISSED:
        raise Pointless(f"the sandbox could not be entered (status {status})")
    return missed


def _status_within(*words: str) -> int:
    command = interpreter.command(inside.__name__, *words)
    return subprocess.run(command, env=environment(), timeout=60, check=False).returncode
