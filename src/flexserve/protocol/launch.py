"""The launch contract: how one world's program starts the other's, and how that one says that it cannot.

The normal world runs the module SECURE_WORLD with a SecureOptions as words. Instead of the words it may give
a socket from which they come later: `--options-fd N`. When it cannot start it prints a `Failure`
(flexserve.protocol.messages) as its last line, as JSON, and exits with EXIT_CANNOT_START.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from flexserve.errors import CallerError
from flexserve.protocol.model_options import KvType
from flexserve.units import GIB

SECURE_WORLD = "flexserve.secure_world.main"
TEE_CLIENT = "flexserve.tee_client.main"  # in its place where the secure world is inside of the machine
SOMETHING_SAID, NEW_MODELS = b"\1", b"\2"  # what that one tells whoever rings for it …
MODELS_READY, MODELS_NOT_READY = b"\2", b"\3"  # … and is told for each NEW_MODELS, once it was tried
EXIT_CANNOT_START = 3
EXIT_CUT_OFF = 4  # of a client of a secure world inside, to which it cannot speak any more

LinuxMemory = Literal["secret", "plain"]
Memory = Literal[LinuxMemory, "trustzone"]


class SecureOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """How a secure world is started: its options, their types and what they are when nobody says.

    `threads`, `context` and `chunk` 0: the secure world's own choice. It inherits the descriptors `fds`.
    """

    store: Path
    device_key: Path
    memory: Memory = "secret"
    threads: int = 0
    context: int = 0  # tokens
    parallel: int = 4  # requests that a model answers at once
    kv_type: KvType = "f16"  # in which KV is kept
    kv_disk: int = GIB  # bytes of sealed KV kept on disk for a model
    max_queue: int = 64  # requests that may wait
    # In which something has to move while the engine computes: a slice takes 50 ms, one that has to
    # wait for all of a model's weights a minute.
    step_seconds: float = 600.0
    idle_seconds: float = 300.0  # after which an idle model gives its memory back unasked
    cache_threshold: float = 0.25  # a model with at least this share of the requests is worth caching …
    cache_top: int = 3  # … and when none has it, so many that are asked most
    rewarm: bool = False  # bring such models back when nobody needs the memory, before a request asks
    chunk: int = 0  # bytes in which memory comes and goes; a power of two
    channel_fd: int = -1  # the secure world's end of the channel; whoever starts it fills this in
    options_fd: int = -1  # whence more options come, see above
    ram_fd: int = -1  # trustzone: the machine's RAM …
    doorbell_fd: int = -1  # … the secure core's end of its secure UART, or whoever rings for TEE_CLIENT …
    ring_offset: int = 0  # … where in RAM its messages lie …
    ring_bytes: int = 0
    disk_fd: int = -1  # … for TEE_CLIENT: the line to who has the guest's disk; -1: there is none …
    buffer_offset: int = 0  # … where in RAM the buffer of its driver lies …
    buffer_bytes: int = 0
    npu_driver: bytes = b""  # … SHA-256 of what may drive its NPU; empty: it has none …
    firmware: bytes = b""  # … SHA-512 of the firmware that was verified and started …
    firmware_authority: bytes = b""  # … and of the key that signed it …
    identity: bytes = b""  # … for TEE_CLIENT: the application's chain, and what is measured of it …
    npu_patience: float = 2.0  # … and the seconds for a job of it, whose start the OS has to carry out

    @property
    def fds(self) -> tuple[int, ...]:
        """The descriptors that the secure world finds itself with."""
        return tuple(fd for fd in (self.channel_fd, self.ram_fd, self.doorbell_fd, self.disk_fd) if fd >= 0)

    def words(self) -> list[str]:
        """Return the options as words of a command line."""
        named = msgspec.to_builtins(self, enc_hook=str)
        return [word for name, value in named.items() for word in (f"--{name}", str(value))]

    @classmethod
    def parse(cls, words: Sequence[str]) -> SecureOptions:
        """Return what `words` say; of an option that comes twice, the last counts. Raises CallerError."""
        names, values = words[::2], words[1::2]
        if len(names) != len(values) or not all(name.startswith("--") for name in names):
            raise _unclear("every option is a word --NAME and a word for its value")
        named = dict(zip((name[2:] for name in names), values, strict=True))
        try:
            return msgspec.convert(named, cls, strict=False, dec_hook=_path)
        except msgspec.ValidationError as error:
            raise _unclear(str(error)) from None


def descriptors(words: Sequence[str]) -> set[int]:
    """Return the descriptors that `words` name, before anything else about them is known."""
    return {
        int(value) for name, value in itertools.pairwise(words) if name.endswith("-fd") and value.isdecimal()
    }


def _path(kind: type, value: Any) -> Path:
    if kind is not Path:
        raise NotImplementedError(f"an option of type {kind.__name__}")
    return Path(value)


def _unclear(why: str) -> CallerError:
    return CallerError(
        f"The options of the secure world are not clear: {why}.",
        hint="Let `flexserve serve` start it, or see flexserve.protocol.launch.",
    )
