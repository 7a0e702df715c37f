"""The secure core of a machine whose secure world is inside: its client is a process of the host.

The client gets RAM, of which it maps the ring of messages and the buffer of the guest's disk only, and a line
by which it has the driver told that it wrote there. What it says to the guest is said here: it asks the
guest's agent nothing. If the machine has a disk, it gets the line to who has that in the guest, too.

A client that ended may have left half a message behind. So the next one gets a machine that was just booted,
whose RAM was overwritten.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import msgspec

from flexserve.emulator.devicetree import BUFFER, BUFFER_BYTES, RING, RING_BYTES
from flexserve.emulator.guest_memory import GuestMemory
from flexserve.emulator.machine import Machine
from flexserve.errors import FlexServeError, NormalWorldError
from flexserve.platforms.trustzone.ram import BASE
from flexserve.protocol.launch import MODELS_NOT_READY, MODELS_READY, NEW_MODELS, TEE_CLIENT, SecureOptions

_SAID = "/sys/kernel/debug/flexmem/said"
_LOOK = 0.5  # seconds between two looks whether the application lives, while its client says nothing
_MOST = 4096  # bytes taken at a time
_LAST = 500  # characters of the console, in the report of an end


class Bell:
    """Tells the driver when `line` says that something was said; says on it why the application has ended.

    The line breaks off when the machine has ended, or is of no help any more.

    And has models made ready for the application that the store got meanwhile, when it says that; and says
    on it when that was done, or failed.
    """

    def __init__(self, machine: Machine) -> None:
        self.line, self._ours = socket.socketpair()
        self._machine = machine
        self._wanted = queue.SimpleQueue[int]()  # how often models were; 0: this ends
        self._ours.settimeout(_LOOK)
        self._thread = threading.Thread(target=self._listen, name="inner-bell", daemon=True)
        self._thread.start()
        self._provider = threading.Thread(target=self._provide_models, name="inner-models", daemon=True)
        self._provider.start()

    def close(self) -> None:
        """End. Always safe."""
        with contextlib.suppress(OSError):
            self.line.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._wanted.put(0)
        self._provider.join()
        self.line.close()

    def _listen(self) -> None:
        with self._ours:
            try:
                while not self._is_over():
                    pass
                self._ours.sendall(self._why().encode())
            except NormalWorldError as error:  # that the machine is gone, the line's end says
                sys.stderr.write(f"{error}\n")
            except OSError:
                return

    def _is_over(self) -> bool:
        """Pass on what was said next; return, when nothing was for a while, whether the application ended."""
        agent = self._machine.agent
        try:
            said = self._ours.recv(_MOST)
        except TimeoutError:
            return agent.ask("flexmem").get("ended") == 1
        if not said:
            raise BrokenPipeError
        if wanted := said.count(NEW_MODELS):
            self._wanted.put(wanted)
        agent.ask("write", _SAID, "1")
        return False

    def _provide_models(self) -> None:
        while wanted := self._wanted.get():
            answer = MODELS_READY
            try:
                self._machine.provide_models()
            except FlexServeError as error:
                sys.stderr.write(f"{error}\n")
                answer = MODELS_NOT_READY
            with contextlib.suppress(OSError):  # the client has ended
                self._ours.sendall(wanted * answer)

    def _why(self) -> str:
        said = " | ".join(line for line in self._machine.console() if line.strip())
        return f"the trusted application has ended: {said[-_LAST:]}"


def _threads(cpus: int) -> int:
    """Return how many threads compute on a machine of so many CPUs unless somebody says otherwise.

    They wait for each other by spinning: what else runs, in the machine or on the host, has a core, or they
    would wait for it.
    """
    return max(1, min(cpus, len(os.sched_getaffinity(0))) - 1)


class InnerCore:
    """Machines, one after the other, made by `make`; a normal.guest.SecureCore.

    A context manager: the first one is booted by `__enter__`, which raises as Machine's.
    """

    program = TEE_CLIENT

    def __init__(self, make: Callable[[], Machine]) -> None:
        self._make = make
        # The kernel ends an emulator with the thread that started it.
        self._starter = concurrent.futures.ThreadPoolExecutor(1, "inner-core")
        self._life = contextlib.ExitStack()  # of the present machine and its bell
        self._used = False
        self._booting: Machine | None = None
        self.machine: Machine
        self._bell: Bell

    def __enter__(self) -> Self:
        """Boot."""
        try:
            self._starter.submit(self._boot).result()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        """End the machine, also one that is still booting."""
        ended = self._starter.submit(self._close)
        while not ended.done():
            booting = self._booting
            if booting is not None:
                booting.give_up()
            concurrent.futures.wait([ended], _LOOK)
        self._starter.shutdown()
        ended.result()

    def renew(self) -> None:
        """Have a machine whose application nobody has spoken to yet. Raises NormalWorldError."""
        if self._used:
            self._starter.submit(self._boot).result()
        self._used = True

    def secure_options(self, options: SecureOptions) -> SecureOptions:
        """Return `options` of a client on the present machine."""
        return msgspec.structs.replace(
            options,
            memory="trustzone",
            threads=options.threads or _threads(self.machine.cpus),
            ram_fd=self.machine.ram_fd,
            doorbell_fd=self._bell.line.fileno(),
            ring_offset=RING - BASE,
            ring_bytes=RING_BYTES,
            disk_fd=self.machine.disk_line.fileno() if self.machine.has_disk else -1,
            buffer_offset=BUFFER - BASE,
            buffer_bytes=BUFFER_BYTES,
            firmware=self.machine.firmware.digest,
            firmware_authority=self.machine.firmware.authority,
            identity=self.machine.provisioned.identity if self.machine.provisioned is not None else b"",
        )

    def reset_secure_core(self) -> None:
        """Do nothing: the guest that would get memory back ends with its secure world."""

    def memory(self) -> GuestMemory:
        """Return the view that the present machine's guest has of its memory."""
        return GuestMemory(self)

    def ask(self, *words: str, seconds: float) -> dict[str, Any]:
        """Ask the agent of the present machine's guest."""
        return self.machine.agent.ask(*words, seconds=seconds)

    def _close(self) -> None:
        self._life.close()  # of the machine that is present when this runs

    def _boot(self) -> None:
        self._close()
        self._booting = machine = self._make()
        try:
            with contextlib.ExitStack() as life:
                self.machine = life.enter_context(machine)
                self._bell = Bell(self.machine)
                life.callback(self._bell.close)
                self._life = life.pop_all()
        finally:
            self._booting = None
