"""What a debugger does to a process: stop it, have it call functions of its own, let it go on.

Attacks are made of this. x86-64 only; elsewhere it raises OSError (ENOSYS).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import signal
import struct
from collections.abc import Iterator

from flexserve.platforms.linux import kernel_views as views

_GETREGS, _SETREGS, _CONT, _DETACH, _SEIZE, _INTERRUPT = 12, 13, 7, 17, 0x4206, 0x4207
_WALL = 0x40000000
_REGISTERS = 27  # words of struct user_regs_struct
_RAX, _RDX, _RCX, _RSI, _RDI, _ORIG_RAX, _RIP, _RSP = 10, 12, 11, 13, 14, 15, 16, 19
_BELOW = 16384  # bytes below the stack's top, which nothing there uses

_libc = ctypes.CDLL(None, use_errno=True)


class Puppet:
    """A process that was stopped, and does what it is told."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._registers = self._read_registers()
        self.scratch = (self._registers[_RSP] - _BELOW) & ~0xFFF  # address of a page of its stack

    def write(self, address: int, data: bytes) -> None:
        """Write into its ordinary memory. Raises OSError."""
        with open(f"/proc/{self._pid}/mem", "r+b", buffering=0) as memory:
            os.pwrite(memory.fileno(), data, address)

    def call(self, function: str, *arguments: int) -> int:
        """Have it call a function of the C library with up to four arguments; return the result."""
        registers = list(self._registers)
        for place, value in zip((_RDI, _RSI, _RDX, _RCX), arguments, strict=False):
            registers[place] = value
        stack = self.scratch - 4096 + 8  # as it is after a call, of whose return address nothing is
        self.write(stack, bytes(8))
        registers[_RSP], registers[_RIP] = stack, self._address_of(function)
        registers[_ORIG_RAX] = 2**64 - 1  # it is in no system call any more
        self._write_registers(registers)
        _ptrace(_CONT, self._pid, 0)
        _, status = os.waitpid(self._pid, _WALL)
        if not os.WIFSTOPPED(status) or os.WSTOPSIG(status) != signal.SIGSEGV:
            raise OSError(errno.EINTR, f"{function} did not return")
        return int(self._read_registers()[_RAX])

    def restore(self) -> None:
        """Have it be where it was when it was stopped."""
        self._write_registers(self._registers)

    def _address_of(self, function: str) -> int:
        here = ctypes.cast(getattr(_libc, function), ctypes.c_void_p).value
        assert here is not None
        return here - _start_of_library(os.getpid()) + _start_of_library(self._pid)

    def _read_registers(self) -> list[int]:
        buffer = ctypes.create_string_buffer(8 * _REGISTERS)
        _ptrace(_GETREGS, self._pid, ctypes.addressof(buffer))
        return list(struct.unpack(f"={_REGISTERS}Q", buffer.raw))

    def _write_registers(self, registers: list[int]) -> None:
        buffer = ctypes.create_string_buffer(struct.pack(f"={_REGISTERS}Q", *registers), 8 * _REGISTERS)
        _ptrace(_SETREGS, self._pid, ctypes.addressof(buffer))


@contextlib.contextmanager
def seized(pid: int) -> Iterator[Puppet]:
    """Attach to a process for the block. Raises OSError where the kernel refuses."""
    if platform.machine() != "x86_64":
        raise OSError(errno.ENOSYS, "no injector for this machine")
    _ptrace(_SEIZE, pid, 0)
    try:
        _ptrace(_INTERRUPT, pid, 0)
        os.waitpid(pid, _WALL)
        puppet = Puppet(pid)
        try:
            yield puppet
        finally:
            puppet.restore()
    finally:
        _ptrace(_DETACH, pid, 0)


def _start_of_library(pid: int) -> int:
    return next(mapping.start for mapping in views.mappings(pid) if "/libc.so" in mapping.name)


def _ptrace(request: int, pid: int, data: int) -> None:
    result = _libc.ptrace(
        ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_void_p(0), ctypes.c_void_p(data)
    )
    if result < 0:
        raise OSError(ctypes.get_errno(), f"ptrace({request:#x})")
