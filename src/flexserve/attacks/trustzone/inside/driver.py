"""A process of the normal world that drives the application, for it to be dumped and killed.

It has what such a process needs, and nothing else: the ring, the sealed model, and a folder for ciphertext.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import msgspec

from flexserve import interpreter
from flexserve.attacks.attempt import Pointless
from flexserve.emulator.machine import Machine
from flexserve.harness.inner import SealedFile, ring_of
from flexserve.platforms.linux import parent_death

_PROGRAM = "flexserve.attacks.trustzone.inside.driving"


class Driver:
    """Such a process, on a machine whose application nobody has greeted yet. It ends with the block."""

    def __init__(self, machine: Machine, file: SealedFile, folder: Path) -> None:
        """`folder` is its storage: what was kept there is found again by the next one."""
        folder.mkdir(exist_ok=True)
        manifest = folder / "manifest.json"
        manifest.write_bytes(msgspec.json.encode(file.manifest))
        offset, size = ring_of(machine)
        words = (str(machine.ram_fd), str(offset), str(size), str(file.path), str(folder))
        self.process = subprocess.Popen(
            parent_death.command(*interpreter.command(_PROGRAM, *words)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(machine.ram_fd,),
            text=True,
        )

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Its number."""
        return self.process.pid

    def say(self, line: str) -> str:
        """Have it do something; return what it answers. Raises Pointless when it cannot."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        word, _, rest = self.process.stdout.readline().rstrip("\n").partition(" ")
        if word != "done":
            raise Pointless(f"the driver could not do {line.partition(' ')[0]!r}: {rest or 'it ended'}")
        return rest

    def kill(self) -> None:
        """End it as the kernel does. Always safe."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
