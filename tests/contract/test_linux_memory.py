"""Both kinds of memory on Linux keep the contract of SecureMemory."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from flexserve.errors import NormalWorldError
from flexserve.platforms.linux import mman
from flexserve.platforms.linux.secure_memory import MemfdSecretMemory, PlainMemory, probe_secret_memory
from flexserve.platforms.ports import SecureMemory
from flexserve.testing.secure_memory import SecureMemoryContract
from flexserve.testing.stateful import SecureMemoryMachine
from flexserve.units import KIB, MIB

CHUNK = 64 * KIB


def why_no_secret_memory() -> str:
    try:
        probe_secret_memory(64 * CHUNK)
    except NormalWorldError as error:
        return str(error)
    return ""


needs_secret_memory = pytest.mark.skipif(bool(why_no_secret_memory()), reason=why_no_secret_memory())


@contextmanager
def short_of(resource: str, code: int, times: int) -> Iterator[None]:
    """Let the kernel call `resource` succeed so many times, then fail with `code`."""
    real: Callable[..., int] = getattr(mman, resource)
    left = times

    def call(*args: int) -> int:
        nonlocal left
        if resource == "mmap" and not (args[2] & mman.PROT_WRITE):
            return real(*args)  # reservations and releases need no memory
        if left <= 0:
            raise OSError(code, os.strerror(code))
        left -= 1
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mman, resource, call)
        yield


@needs_secret_memory
class TestMemfdSecretMemory(SecureMemoryContract):
    def create_memory(self) -> SecureMemory:
        return MemfdSecretMemory(CHUNK)

    @contextmanager
    def scarce_memory(self, chunks: int) -> Iterator[SecureMemory]:
        memory = MemfdSecretMemory(CHUNK)
        with short_of("memfd_secret", errno.EMFILE, chunks):
            yield memory


@needs_secret_memory
class TestMemfdSecretMemoryShortOfLockedMemory(SecureMemoryContract):
    def create_memory(self) -> SecureMemory:
        return MemfdSecretMemory(CHUNK)

    @contextmanager
    def scarce_memory(self, chunks: int) -> Iterator[SecureMemory]:
        memory = MemfdSecretMemory(CHUNK)
        with short_of("mmap", errno.EAGAIN, chunks):
            yield memory


class TestPlainMemory(SecureMemoryContract):
    def create_memory(self) -> SecureMemory:
        return PlainMemory(CHUNK)

    @contextmanager
    def scarce_memory(self, chunks: int) -> Iterator[SecureMemory]:
        class Scarce(PlainMemory):
            """One mmap serves a whole range here, so the shortage is counted in chunks."""

            left = chunks

            def _map(self, address: int, length: int) -> None:
                super()._map(address, length)
                self.left -= length // self.chunk
                if self.left < 0:
                    self.left += length // self.chunk
                    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

        yield Scarce(CHUNK)


class SecretMachine(SecureMemoryMachine):
    def create_memory(self) -> SecureMemory:
        return MemfdSecretMemory(4 * KIB)


class PlainMachine(SecureMemoryMachine):
    def create_memory(self) -> SecureMemory:
        return PlainMemory(4 * KIB)


TestSecretAtRandom = needs_secret_memory(SecretMachine.TestCase)
TestPlainAtRandom = PlainMachine.TestCase


def test_chunks_of_a_mebibyte_are_the_default():
    assert MemfdSecretMemory().chunk == PlainMemory().chunk == MIB
