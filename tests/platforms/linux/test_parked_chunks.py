"""Parked chunks: memory moves instead of being allocated again, and nobody finds what was there before."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexserve.errors import NormalWorldError
from flexserve.platforms.linux import mman, reservation, seccomp, secure_memory
from flexserve.platforms.linux.parked_chunks import ParkedChunks
from flexserve.platforms.linux.secure_memory import MemfdSecretMemory, probe_secret_memory
from flexserve.platforms.ports import Arena
from flexserve.trusted.memory.flexmem import FlexMem, OpenHanded
from flexserve.units import KIB, MIB

CHUNK = 64 * KIB
CANARY = b"canary of the owner before"
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S+) (.*)$", re.MULTILINE)


def why_nothing_moves() -> str:
    try:
        probe_secret_memory(64 * CHUNK)
    except NormalWorldError as error:
        return str(error)
    if not secure_memory.locks_without_limit():
        return "this process may lock so much memory and no more: nothing is parked"
    return ""


moves = pytest.mark.skipif(bool(why_nothing_moves()), reason=why_nothing_moves())


@pytest.fixture
def memory() -> Iterator[MemfdSecretMemory]:
    memory = MemfdSecretMemory(CHUNK)
    yield memory
    memory.trim(0)


def secret_ranges() -> list[tuple[int, int]]:
    """Return (address, length) of each piece of secret memory that the kernel says is mapped here."""
    maps = Path("/proc/self/maps").read_text()
    return [
        (int(start, 16), int(end, 16) - int(start, 16))
        for start, end, _, name in _MAPPING.findall(maps)
        if "secretmem" in name
    ]


def rights_of(arena: Arena) -> set[str]:
    """Return the access rights of all mappings in an arena, "hole" where there is none."""
    maps, found, at = Path("/proc/self/maps").read_text(), set(), arena.base
    for start, end, rights, _ in sorted(_MAPPING.findall(maps), key=lambda line: int(line[0], 16)):
        if int(end, 16) > at and int(start, 16) < arena.base + arena.size:
            found |= {"hole"} if int(start, 16) > at else set()
            found.add(rights)
            at = int(end, 16)
    return found | ({"hole"} if at < arena.base + arena.size else set())


def rss() -> int:
    """Return what the kernel counts as resident for this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mman.PAGE


def filled(memory: MemfdSecretMemory, chunks: int) -> Arena:
    """Return an arena whose every page holds the canary."""
    arena = memory.reserve(chunks * memory.chunk)
    memory.commit(arena, 0, arena.size)
    for page in range(0, arena.size, mman.PAGE):
        memory.view(arena, page, len(CANARY))[:] = CANARY
    return arena


@moves
def test_a_parked_chunk_holds_nothing_of_its_owner_before(memory: MemfdSecretMemory):
    arena = filled(memory, 8)
    memory.release(arena, 0, 6 * CHUNK, keep=True)
    searched = 0
    for address, length in secret_ranges():
        if not arena.base <= address < arena.base + arena.size:
            assert CANARY not in bytes(mman.view(address, length))
            searched += length
    assert searched >= 6 * CHUNK, "what is parked was not found"
    assert bytes(memory.view(arena, 6 * CHUNK, len(CANARY))) == CANARY
    memory.release(arena, 6 * CHUNK, 2 * CHUNK)
    memory.free(arena)


@moves
def test_the_next_owner_finds_zeros_and_its_memory_is_not_allocated_again(
    memory: MemfdSecretMemory, monkeypatch: pytest.MonkeyPatch
):
    arena = filled(memory, 6)
    before = rss()
    memory.release(arena, 0, arena.size, keep=True)
    assert memory.resident() == arena.size

    def refuse() -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(mman, "memfd_secret", refuse)
    other = memory.reserve(arena.size)
    memory.commit(other, CHUNK, 4 * CHUNK)
    assert not any(memory.view(other, CHUNK, 4 * CHUNK))
    memory.commit(other, 0, CHUNK)
    memory.commit(arena, 5 * CHUNK, CHUNK)
    assert memory.resident() == arena.size
    assert abs(rss() - before) < CHUNK
    for its, offset, length in ((other, 0, 5 * CHUNK), (arena, 5 * CHUNK, CHUNK)):
        memory.release(its, offset, length)
    memory.free(arena)
    memory.free(other)


@moves
def test_more_than_is_parked_comes_partly_from_there(memory: MemfdSecretMemory):
    arena = filled(memory, 2)
    memory.release(arena, 0, arena.size, keep=True)
    other = memory.reserve(5 * CHUNK)
    memory.commit(other, 0, 5 * CHUNK)
    assert memory.resident() == 2 * CHUNK, "only what moved has pages before it is touched"
    assert not any(memory.view(other, 0, 5 * CHUNK))
    memory.release(other, 0, 5 * CHUNK)
    assert memory.resident() == 0
    memory.free(arena)
    memory.free(other)


@moves
def test_neither_side_of_a_move_leaves_a_hole_in_the_addresses(memory: MemfdSecretMemory):
    arena = filled(memory, 4)
    memory.release(arena, CHUNK, 3 * CHUNK, keep=True)
    assert rights_of(arena) == {"rw-s", "---p"}
    other = memory.reserve(2 * CHUNK)
    memory.commit(other, 0, 2 * CHUNK)
    assert rights_of(other) == {"rw-s"}
    assert memory._parked is not None
    parked = Arena(memory._parked._base, 4 * CHUNK)
    assert rights_of(parked) == {"rw-s", "---p"}, "one chunk is left there, and nobody else's mapping"
    memory.release(other, 0, 2 * CHUNK)
    memory.release(arena, 0, CHUNK)
    memory.free(arena)
    memory.free(other)


@moves
def test_moving_opens_no_descriptor_and_a_child_inherits_nothing_parked(memory: MemfdSecretMemory):
    before, others = len(os.listdir("/proc/self/fd")), set(secret_ranges())
    arena = filled(memory, 4)
    memory.release(arena, 0, arena.size, keep=True)
    assert len(os.listdir("/proc/self/fd")) == before
    child = os.fork()
    if child == 0:
        os._exit(len(set(secret_ranges()) - others))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    memory.free(arena)


@moves
def test_what_is_trimmed_goes_to_the_os_by_its_own_count():
    memory = MemfdSecretMemory()
    arena = filled(memory, 16)
    memory.release(arena, 0, 16 * MIB, keep=True)
    before = rss()
    memory.trim(4 * MIB)
    assert 11 * MIB <= before - rss() <= 13 * MIB
    assert memory.resident() == 4 * MIB
    memory.trim(4 * MIB)
    assert memory.resident() == 4 * MIB
    memory.trim(0)
    assert memory.resident() == 0
    memory.free(arena)


@moves
def test_what_flexmem_gives_back_unused_is_memory_that_the_os_gets():
    memory = MemfdSecretMemory()
    flexmem = FlexMem(memory, 64 * MIB, OpenHanded())
    arena = flexmem.reserve(16 * MIB)
    flexmem.commit(arena, 0, arena.size)
    flexmem.view(arena, 0, arena.size)[:] = b"x" * arena.size
    before = rss()
    flexmem.recycle(arena, 0, 12 * MIB)
    assert (flexmem.unused(), flexmem.resident()) == (12 * MIB, 16 * MIB)
    assert abs(before - rss()) <= MIB
    assert flexmem.return_unused() == 12 * MIB
    assert flexmem.resident() == 4 * MIB
    assert 11 * MIB <= before - rss() <= 13 * MIB
    flexmem.check()
    flexmem.free(arena)


@moves
def test_chunks_that_were_never_touched_are_parked_without_pages(memory: MemfdSecretMemory):
    arena = memory.reserve(4 * CHUNK)
    memory.commit(arena, 0, arena.size)
    memory.release(arena, 0, arena.size, keep=True)
    assert memory.resident() == 0
    memory.free(arena)


@moves
def test_a_kernel_that_moves_nothing_gets_the_memory(
    memory: MemfdSecretMemory, monkeypatch: pytest.MonkeyPatch
):
    def refuse(address: int, length: int, target: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    arena = filled(memory, 4)
    monkeypatch.setattr(mman, "move", refuse)
    memory.release(arena, 0, arena.size, keep=True)
    assert memory.resident() == 0
    assert rights_of(arena) == {"---p"}
    memory.commit(arena, 0, arena.size)
    assert not any(memory.view(arena, 0, arena.size))
    memory.release(arena, 0, arena.size)
    memory.free(arena)


@moves
def test_a_range_that_could_not_be_taken_away_is_not_parked_either(
    memory: MemfdSecretMemory, monkeypatch: pytest.MonkeyPatch
):
    def refuse(address: int, length: int) -> None:
        raise NormalWorldError("The OS would not.", hint="Expect this in a test.")

    arena = filled(memory, 2)
    with monkeypatch.context() as patch:
        patch.setattr(reservation, "put_back", refuse)
        with pytest.raises(NormalWorldError):
            memory.release(arena, 0, arena.size, keep=True)
    other = memory.reserve(2 * CHUNK)
    memory.commit(other, 0, 2 * CHUNK)
    memory.view(other, 0, 6)[:] = b"theirs"
    assert b"theirs" not in bytes(mman.view(arena.base, arena.size)), "two places share a chunk"
    memory.release(other, 0, 2 * CHUNK)
    memory.free(other)
    memory.free(arena)


@moves
def test_no_more_is_parked_than_there_are_addresses_for(monkeypatch: pytest.MonkeyPatch):
    memory = MemfdSecretMemory(CHUNK)
    monkeypatch.setattr(memory, "_parked", ParkedChunks(CHUNK, 3 * CHUNK))
    arena = filled(memory, 5)
    memory.release(arena, 0, arena.size, keep=True)
    assert memory.resident() == 3 * CHUNK
    memory.trim(0)
    memory.free(arena)


@moves
def test_memory_of_a_process_that_is_killed_while_chunks_are_parked_is_read_by_nobody():
    program = textwrap.dedent(f"""
        import sys, time
        from flexserve.platforms.linux.secure_memory import MemfdSecretMemory
        memory = MemfdSecretMemory()
        arena = memory.reserve(32 << 20)
        memory.commit(arena, 0, arena.size)
        memory.view(arena, 0, arena.size)[:] = ({CANARY!r} * (arena.size // {len(CANARY)} + 1))[: arena.size]
        memory.release(arena, 0, 16 << 20, keep=True)
        assert memory.resident() == 32 << 20
        print("parked", flush=True)
        time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "parked\n"
        process.send_signal(signal.SIGKILL)
    memory = MemfdSecretMemory()
    arena = memory.reserve(64 * MIB)
    memory.commit(arena, 0, arena.size)
    assert CANARY not in bytes(memory.view(arena, 0, arena.size))
    memory.release(arena, 0, arena.size)
    memory.free(arena)


@moves
@pytest.mark.skipif(
    not seccomp.available(), reason="this kernel or this machine has no filters of system calls"
)
def test_memory_moves_under_the_filter_of_a_process_that_serves():
    program = textwrap.dedent("""
        import ctypes
        from flexserve.platforms.linux import mman, seccomp
        from flexserve.platforms.linux.secure_memory import MemfdSecretMemory
        ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        seccomp.install(seccomp.serving())
        memory = MemfdSecretMemory()
        arena = memory.reserve(4 << 20)
        memory.commit(arena, 0, arena.size)
        memory.view(arena, 0, arena.size)[:] = b"x" * arena.size
        memory.release(arena, 0, arena.size, keep=True)
        print(memory.resident())
    """)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 4 * MIB


# Without root's privilege to lock as much as it likes, and with so much to lock.
LIMITED = """
import os, resource
from flexserve.platforms.linux import secure_memory
from flexserve.platforms.linux.secure_memory import MemfdSecretMemory
resource.setrlimit(resource.RLIMIT_MEMLOCK, ({limit}, {limit}))
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
memory = MemfdSecretMemory()
arena = memory.reserve(8 << 20)
for _ in range(40):
    memory.commit(arena, 0, 4 << 20)
    memory.view(arena, 0, 1)[0] = 1
    memory.release(arena, 0, 4 << 20, keep=True)
    print(memory.resident())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can raise and lower the limit")
@moves
@pytest.mark.parametrize(("limit", "moved"), [(8 * MIB, False), (resource.RLIM_INFINITY, True)])
def test_memory_moves_only_where_as_much_as_one_likes_may_be_locked(limit: int, moved: bool):
    """The kernel counts a page as locked once more with each move: 40 times 4 MiB would exceed 8 MiB."""
    if moved and resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] != resource.RLIM_INFINITY:
        pytest.skip("this root may not lift the limit")
    program = LIMITED.format(limit=limit)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {int(line) > 0 for line in done.stdout.split()} == {moved}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has the capability")
@moves
def test_the_capability_to_lock_is_as_good_as_no_limit():
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 * MIB, before[1]))
    try:
        assert secure_memory.locks_without_limit()
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)
