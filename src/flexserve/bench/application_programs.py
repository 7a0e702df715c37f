"""Who takes part in the application benchmark, besides the foreground program.

python -m flexserve.bench.application_programs serve STORE KEY SOCKET
python -m flexserve.bench.application_programs reserve BYTES
"""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flexserve.bench.application_report import Look, Return
from flexserve.bench.group import MemoryGroup
from flexserve.errors import FlexServeError, NormalWorldError, PeerError
from flexserve.normal.address import Address
from flexserve.normal.client import Client
from flexserve.normal.reports import Ending
from flexserve.platforms.linux import parent_death
from flexserve.protocol.launch import SecureOptions
from flexserve.protocol.prompts import ChatMessage
from flexserve.protocol.sampling import Sampling

MODEL = "bench"
_MODULE = (sys.executable, "-m", "flexserve.bench.application_programs")
_TICK = 0.05  # seconds between two looks at who has how much
_PATIENCE = 120.0  # seconds until a server is up
_TOKENS = 48  # of each answer
_WORDS = 32  # of a prompt whose first token is timed …
_WARM = 5  # … so often with everything in memory
_SERIAL = itertools.count(101)  # no prompt is asked twice: sealed KV outlives a server


class Server:
    """A FlexServe that is being asked."""

    def __init__(self, client: Client, process: subprocess.Popen[bytes]) -> None:
        self._client, self._process = client, process
        self.answers = 0
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                client.health()
                break
            except FlexServeError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise PeerError("The server did not start.", hint="Run `flexserve serve`.") from None
                time.sleep(0.1)
        self.secure_pid = client.states().os.secure_pid or 0

    def answer(self) -> None:
        """Have one request answered."""
        prompt = [ChatMessage("user", "Why?")]
        for _ in self._client.ask(MODEL, prompt, Sampling(max_tokens=_TOKENS, temperature=0)):
            pass
        self.answers += 1

    def comes_back(self, patience: float) -> Return:
        """Wait up to `patience` seconds until the model is whole, unasked; then ask for first tokens."""
        began = time.monotonic()
        while not (whole := self._client.states().models[0].resident_fraction == 1):
            if time.monotonic() - began > patience:
                break
            time.sleep(_TICK)
        after = time.monotonic() - began if whole else None
        first = self._first_token()
        return Return(after, first, statistics.median(self._first_token() for _ in range(_WARM)))

    def _first_token(self) -> float:
        """Return the seconds to the first token of a prompt that no earlier one begins."""
        prompt = [ChatMessage("user", f"{next(_SERIAL)}: {'why? ' * _WORDS}")]
        *_, ending = self._client.ask(MODEL, prompt, Sampling(max_tokens=1, temperature=0))
        assert isinstance(ending, Ending)
        return ending.timings.ttft / 1000

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Have one request after the other answered during the block."""
        ending = threading.Event()

        def ask() -> None:
            while not ending.is_set():
                with contextlib.suppress(FlexServeError):
                    self.answer()

        thread = threading.Thread(target=ask, name="asking", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ending.set()
            thread.join()

    def decisions(self) -> list[dict[str, Any]]:
        """Return the log of its memory decisions."""
        return [
            {"kind": line.kind, "size": line.size, "count": line.count, "reason": line.reason}
            for line in self._client.decisions().decisions
        ]


class Watch:
    """Looks at a cgroup and at a secure process, until the end of the block."""

    def __init__(self, group: MemoryGroup, pid: int) -> None:
        self._group, self._pid = group, pid
        self._seen: list[tuple[float, int, int]] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def looks(self, *, since: float) -> list[Look]:
        """Return what was seen, at times relative to `since`."""
        return [Look(at - since, free, secure) for at, free, secure in list(self._seen)]

    def _run(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._ending.wait(_TICK):
            secure = 0
            with contextlib.suppress(OSError, IndexError):  # it died: it has nothing
                secure = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1]) * page
            self._seen.append((time.monotonic(), self._group.limit - self._group.used(), secure))


@contextlib.contextmanager
def serving(group: MemoryGroup, folder: Path, store: Path, key: Path) -> Iterator[Server]:
    """Have a FlexServe, both worlds of it, in `group`. Its log and its socket are in `folder`."""
    socket = folder / "socket"
    serve = [*_MODULE, "serve", str(store), str(key), str(socket)]
    command = parent_death.command(*group.command(serve))
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            with Client(Address("localhost", 0, socket)) as client:
                yield Server(client, process)
        finally:
            process.kill()
            process.wait()
            group.clear()  # the secure world dies with its parent, but not at once
            socket.unlink(missing_ok=True)


@contextlib.contextmanager
def reservation(group: MemoryGroup, size: int) -> Iterator[None]:
    """Have a process in `group` that holds `size` bytes of locked memory."""
    command = group.command([*_MODULE, "reserve", str(size)])
    process = subprocess.Popen(parent_death.command(*command), stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"held\n":
            raise NormalWorldError("The memory could not be reserved.", hint="Run this as root.")
        yield
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


# ---- the processes


def _serve(store: Path, key: Path, socket: Path) -> int:
    """Be the server. Its model stays until it is recalled, and comes back when nobody needs the memory."""
    from flexserve.normal.main import ServeOptions, serve

    secure = SecureOptions(store, key, threads=1, context=512, idle_seconds=86400.0, rewarm=True)
    return serve(ServeOptions(secure, host=None, unix_socket=socket, log_level="warning"))


def _reserve(size: int) -> int:
    """Hold `size` bytes of locked memory until killed."""
    from flexserve.platforms.linux.secure_memory import MemfdSecretMemory

    memory = MemfdSecretMemory()
    arena = memory.reserve(size)
    memory.commit(arena, 0, arena.size)
    view = memory.view(arena, 0, arena.size)
    page = os.sysconf("SC_PAGE_SIZE")
    for offset in range(0, arena.size, page):  # the OS supplies a page at first touch
        view[offset] = 1
    sys.stdout.write("held\n")
    sys.stdout.flush()
    threading.Event().wait()
    return 0


def main(arguments: list[str]) -> int:
    """Be what the command line says; return the exit status."""
    match arguments:
        case ["serve", store, key, socket]:
            return _serve(Path(store), Path(key), Path(socket))
        case ["reserve", size]:
            return _reserve(int(size))
    sys.stderr.write(f"{__doc__}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
