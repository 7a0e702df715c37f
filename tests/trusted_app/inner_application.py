"""The trusted application of trusted-app/ as a process of tests.

It runs under qemu-aarch64, and is driven through a ring in a file.
"""

from __future__ import annotations

import itertools
import mmap
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from flexserve.emulator import trusted_app
from flexserve.emulator.trusted_app import Programs
from flexserve.errors import PeerError
from flexserve.tee_client.link import Link, Wire
from flexserve.tee_client.messages import HEADER, Ask, Reply, Status, request
from flexserve.tee_client.ring import Ring

MODEL = Path(__file__).parents[2] / "models/tiny/flexserve-tiny.gguf"
QUESTION = "<|im_start|>user\nWhat is Flex-Mem?<|im_end|>\n<|im_start|>assistant\n"
ROOT = bytes(range(32))  # the device's root secret
_PLENTY = 64  # chunks: enough for the model of the tests, with its KV and scratch
_RING = 1 << 22  # bytes
_OWN_TAGS = 1 << 32  # from here on: tags of what is sent beside the link


class Gone(PeerError):
    """The application has ended."""


class Application:
    """A running trusted application."""

    process: subprocess.Popen[bytes]

    def __init__(self, command: Sequence[str | Path], *, threads: int = 1, hello: bool = True) -> None:
        """Start it with a ring of its own. Without `hello` nothing was said to it yet."""
        self._file = tempfile.NamedTemporaryFile()  # noqa: SIM115  # it goes with the test
        self._file.truncate(_RING)
        self.start([*command, self._file.name])
        self.drive_in(memoryview(mmap.mmap(self._file.fileno(), _RING)), threads=threads, hello=hello)

    def start(self, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
        """Start its process."""
        self.process = subprocess.Popen(command, env={**os.environ, **(environment or {})})

    def drive_in(self, memory: memoryview, *, threads: int = 1, hello: bool = True) -> None:
        """Drive it by a ring in this memory."""
        self._memory = memory
        self.drive(Ring(memory, self._rest), threads=threads, hello=hello)

    def _rest(self) -> None:
        if self.process.poll() is not None:
            raise Gone("It has ended.")
        time.sleep(0.0005)

    def drive(self, wire: Wire, *, threads: int = 1, hello: bool = True) -> None:
        """Drive it by this wire."""
        self._wire, self.link = wire, Link(wire)
        self._tags = itertools.count(_OWN_TAGS)
        if hello:
            self.version, self.chunk, self.batch, self.inside, *_ = self.do(Ask.HELLO, threads).values

    def end(self) -> None:
        """End it. Always safe."""
        self.process.kill()
        self.process.wait()

    def ask(self, kind: int, *arguments: int, payload: bytes = b"") -> Reply:
        """Ask, and return what it answers. Raises Gone when it ends instead."""
        return self.link.ask(kind, *arguments, payload=payload)

    def do(self, kind: Ask, *arguments: int, payload: bytes = b"") -> Reply:
        """Ask for what is granted."""
        reply = self.ask(kind, *arguments, payload=payload)
        assert reply.status is Status.DONE, (kind, reply)
        return reply

    # ---- beside the link, which asks one thing at a time ---------------------------------------------

    def send(self, kind: int, *arguments: int, payload: bytes = b"") -> int:
        """Ask, and do not wait for an answer; return the tag."""
        tag = next(self._tags)
        self._wire.write(request(kind, tag, arguments, payload))
        return tag

    def receive(self) -> tuple[int, Reply]:
        """Return the next answer, and the tag of what it answers. Raises Gone."""
        status, size, tag, *values = HEADER.unpack(self._wire.read(HEADER.size))
        return tag, Reply(Status(status), tuple(values), self._wire.read(size))


Start = Callable[..., Application]  # with how many threads, and whether to say hello


class RingApplication(Application):
    """One that is driven through a ring, in a file of `size` bytes at `path`; `ram`: a file of its memory."""

    def __init__(
        self, command: Sequence[str | Path], path: Path, size: int, *, ram: Path | None = None
    ) -> None:
        path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            memory = memoryview(mmap.mmap(file.fileno(), size))
        # The variables are for trusted-app/tests/fake_secure_os.cpp.
        environment = {"FLEX_RING": str(path)} | ({"FLEX_RAM": str(ram)} if ram is not None else {})
        self.start([*command, path], environment)
        self.drive_in(memory)

    def add_to_count(self, number: int, lie: int) -> None:
        """Change a count of the ring, behind its back."""
        place = slice(64 * number, 64 * number + 4)
        value = int.from_bytes(self._memory[place], "little") + lie
        self._memory[place] = (value % (1 << 32)).to_bytes(4, "little")


def provide(app: Application, *, chunks: int = _PLENTY) -> None:
    """Give it the secret, and as much memory as the tests need."""
    app.do(Ask.SECRET, payload=ROOT)
    app.do(Ask.GRANT, chunks)


def plain(emulator: str, programs: Programs, prompt: str, threads: int, most: int) -> list[int]:
    """Return the tokens that llama.cpp itself says."""
    command = (emulator, "-cpu", "cortex-a76", programs.plain, MODEL, str(threads), "say", str(most), prompt)
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    return [int(line) for line in done.stdout.split()]


def checked(emulator: str, programs: Programs) -> list[str]:
    """Return the command of the application that checks what it does with memory and numbers."""
    libraries = str(trusted_app.CROSS_LIBRARIES)
    return [emulator, "-cpu", "cortex-a76", "-L", libraries, str(programs.checked)]
