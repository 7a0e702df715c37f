"""What Linux's secret memory adds to the contract: limits named before use, and walls that hold."""

import errno
import os
import subprocess
import sys
import textwrap

import pytest

from flexserve.errors import GrantRefusedError, NormalWorldError
from flexserve.platforms.linux import mman, reservation, secure_memory
from flexserve.platforms.linux.secure_memory import MemfdSecretMemory, PlainMemory, probe_secret_memory
from flexserve.units import GIB, MIB


def secret_memory_is_missing() -> bool:
    try:
        os.close(mman.memfd_secret())
    except OSError:
        return True
    return False


needs_secret_memory = pytest.mark.skipif(
    secret_memory_is_missing(), reason="this kernel has no memfd_secret (boot with secretmem.enable=1)"
)

# Run in a process of its own: without root's privilege to lock as much as it likes, and with 8 MiB to lock.
UNPRIVILEGED = """
import os, resource
from flexserve.errors import FlexServeError
from flexserve.platforms.linux.secure_memory import MemfdSecretMemory, probe_secret_memory
resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 << 20, 8 << 20))
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
"""


def run_unprivileged(script: str) -> str:
    program = UNPRIVILEGED + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def failing(code: int):
    def call(*_args: int) -> int:
        raise OSError(code, os.strerror(code))

    return call


def test_a_kernel_without_secret_memory_is_named_with_its_cure(monkeypatch):
    monkeypatch.setattr(mman, "memfd_secret", failing(errno.ENOSYS))
    with pytest.raises(NormalWorldError) as refusal:
        probe_secret_memory()
    assert refusal.value.code == "no_secret_memory"
    assert "secretmem.enable=1" in refusal.value.hint
    assert "--memory plain" in refusal.value.hint


def test_a_sandbox_that_forbids_secret_memory_is_named(monkeypatch):
    monkeypatch.setattr(mman, "memfd_secret", failing(errno.EPERM))
    with pytest.raises(NormalWorldError, match="seccomp"):
        probe_secret_memory()


def test_more_mappings_than_the_kernel_allows_are_refused_before_use():
    with pytest.raises(NormalWorldError, match="mappings") as refusal:
        probe_secret_memory(size=8192 * GIB, chunk=MIB)
    assert "vm.max_map_count" in refusal.value.hint


@needs_secret_memory
def test_a_low_limit_on_locked_memory_is_named_before_use():
    printed = run_unprivileged("""
        probe_secret_memory(4 << 20)
        try:
            probe_secret_memory(64 << 20)
        except FlexServeError as error:
            print(error.code, error)
    """)
    assert printed.startswith("locked_memory_limit 64.0 MiB")
    assert "8.0 MiB" in printed
    assert "sudo prlimit --pid $$ --memlock=unlimited:unlimited" in printed


@needs_secret_memory
def test_a_commit_past_the_limit_on_locked_memory_is_refused_whole():
    printed = run_unprivileged("""
        memory = MemfdSecretMemory()
        arena = memory.reserve(16 << 20)
        memory.commit(arena, 0, 2 << 20)
        memory.view(arena, 0, 4)[:] = b"kept"
        try:
            memory.commit(arena, 2 << 20, 14 << 20)
        except FlexServeError as error:
            print(type(error).__name__)
        memory.commit(arena, 2 << 20, 4 << 20)
        print(bytes(memory.view(arena, 0, 4)))
    """)
    assert printed.split() == [GrantRefusedError.__name__, "b'kept'"]


@needs_secret_memory
def test_the_kernels_own_door_to_memory_does_not_open_on_secret_memory():
    plain, secret = PlainMemory(), MemfdSecretMemory()
    with open("/proc/self/mem", "rb", buffering=0) as door:
        for memory in (plain, secret):
            arena = memory.reserve(MIB)
            memory.commit(arena, 0, MIB)
            memory.view(arena, 0, 6)[:] = b"secret"
            door.seek(arena.base)
            if memory is plain:
                assert door.read(6) == b"secret"
            else:
                with pytest.raises(OSError, match="Input/output"):
                    door.read(6)
            memory.release(arena, 0, MIB)
            memory.free(arena)


@pytest.mark.parametrize("kind", [pytest.param(MemfdSecretMemory, marks=needs_secret_memory), PlainMemory])
def test_a_forked_child_does_not_inherit_the_memory(kind):
    memory = kind()
    arena = memory.reserve(MIB)
    memory.commit(arena, 0, MIB)
    memory.view(arena, 0, 1)[0] = 1
    child = os.fork()
    if child == 0:
        try:
            mman.resident_pages(arena.base, MIB)
        except OSError as error:
            os._exit(0 if error.errno == errno.ENOMEM else 2)  # ENOMEM: nothing is mapped there
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    memory.release(arena, 0, MIB)
    memory.free(arena)


@needs_secret_memory
def test_no_descriptor_stays_open():
    before = len(os.listdir("/proc/self/fd"))
    memory = MemfdSecretMemory()
    arena = memory.reserve(4 * MIB)
    memory.commit(arena, 0, 4 * MIB)
    assert len(os.listdir("/proc/self/fd")) == before
    memory.release(arena, 0, 4 * MIB)
    memory.free(arena)


def test_plain_memory_is_scrubbed_before_the_kernel_gets_it(monkeypatch):
    memory = PlainMemory()
    arena = memory.reserve(MIB)
    memory.commit(arena, 0, MIB)
    memory.view(arena, 5 * mman.PAGE, 6)[:] = b"secret"
    seen: list[bytes] = []
    monkeypatch.setattr(
        reservation, "put_back", lambda address, length: seen.append(bytes(mman.view(address, length)))
    )
    memory.release(arena, 0, MIB)
    assert seen == [bytes(MIB)]


def test_plain_memory_is_labelled_as_unprotected():
    assert not PlainMemory().protection.protected
    assert MemfdSecretMemory().protection.protected
    assert "hostile kernel" in MemfdSecretMemory().protection.summary


def test_a_chunk_must_be_whole_pages():
    with pytest.raises(ValueError, match="whole pages"):
        PlainMemory(chunk=512)
    with pytest.raises(ValueError, match="power of two"):
        PlainMemory(chunk=3 * mman.PAGE)


def test_address_space_that_is_refused_is_reported_with_a_hint():
    with pytest.raises(NormalWorldError) as refusal:
        PlainMemory().reserve(1 << 60)
    assert refusal.value.hint


def test_the_default_chunk_keeps_a_large_model_within_the_kernels_default_of_mappings():
    assert 32 * GIB // secure_memory.DEFAULT_CHUNK < 65530
