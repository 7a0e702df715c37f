"""Root against a running secure world: nothing the kernel offers shows what Flex-Mem holds.

Every attack is made twice: on ordinary memory, where it must find the canary in the weights, and
on secret memory, where it must not.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Target
from kernel_views import Mapping, frame_of, mappings, peek, places_of, read_kcore, read_mem, read_vm

from flexserve.bench.worlds import DrivenWorld

pytestmark = pytest.mark.root


def secret_mappings(world: DrivenWorld) -> list[Mapping]:
    return [mapping for mapping in mappings(world.pid) if mapping.secret]


def test_all_that_the_world_holds_is_in_secret_memory(secret: DrivenWorld):
    held = sum(mapping.end - mapping.start for mapping in secret_mappings(secret))
    status = secret.status()
    (model,) = status.models
    assert held == status.memory.secure
    assert held >= model.resident + model.kv + model.scratch > model.weights


def test_reading_proc_mem_shows_no_byte_of_secret_memory(secret: DrivenWorld):
    for mapping in secret_mappings(secret):
        for address in (mapping.start, mapping.end - 4096):
            with pytest.raises(OSError) as caught:  # noqa: PT011  # the number is what counts
                read_mem(secret.pid, address, 4096)
            assert caught.value.errno == errno.EIO


def test_process_vm_readv_shows_no_byte_of_secret_memory(secret: DrivenWorld):
    for mapping in secret_mappings(secret):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            read_vm(secret.pid, mapping.start, 64)
        assert caught.value.errno == errno.EFAULT


def test_a_debugger_cannot_peek_into_secret_memory(secret: DrivenWorld):
    with pytest.raises(OSError) as caught:  # noqa: PT011
        peek(secret.pid, secret_mappings(secret)[0].start)
    assert caught.value.errno == errno.EIO


def test_the_same_reads_work_on_ordinary_memory(plain: DrivenWorld, target: Target):
    (_, address), *_ = places_of(target.canary, plain.pid)
    size = len(target.canary)
    assert read_mem(plain.pid, address, size) == target.canary
    assert read_vm(plain.pid, address, size) == target.canary
    assert peek(plain.pid, address) == target.canary[:8]


def test_no_readable_mapping_contains_the_weights(secret: DrivenWorld, plain: DrivenWorld, target: Target):
    assert places_of(target.canary, plain.pid), "the search does not find what is there"
    assert places_of(target.canary, secret.pid) == []


def test_no_readable_mapping_contains_the_weights_after_they_came_and_went(
    secret: DrivenWorld, target: Target
):
    for _ in range(3):
        secret.recall(None)
        assert places_of(target.canary, secret.pid) == []
        secret.generate("canary", "Once.", 2)
        assert places_of(target.canary, secret.pid) == []


def test_gdb_cannot_dump_secret_memory_to_a_file(
    secret: DrivenWorld, plain: DrivenWorld, target: Target, tmp_path: Path
):
    if shutil.which("gdb") is None:
        pytest.skip("gdb is not installed")
    (place, _), *_ = places_of(target.canary, plain.pid)
    (dumped,) = dumps(plain, [place], tmp_path / "plain")
    assert target.canary in dumped, "the dump does not show what is there"
    assert dumps(secret, secret_mappings(secret), tmp_path / "secret") == []


def dumps(world: DrivenWorld, places: list[Mapping], folder: Path) -> list[bytes]:
    """Dump mappings with gdb (a whole core has gigabytes of reserved addresses); return what it got."""
    folder.mkdir()
    command = ["gdb", "-nx", "-batch", "-iex", "set auto-solib-add off", "-p", str(world.pid)]
    for place in places:
        command += ["-ex", f"dump binary memory {folder}/{place.start:x} {place.start:#x} {place.end:#x}"]
    ended = subprocess.run([*command, "-ex", "detach"], capture_output=True, timeout=120, check=False)
    assert b"detached" in ended.stdout, ended.stderr
    return [path.read_bytes() for path in folder.iterdir() if path.stat().st_size]


def test_the_kernels_own_map_of_memory_does_not_contain_the_weights(
    secret: DrivenWorld, plain: DrivenWorld, target: Target
):
    if not os.access("/proc/kcore", os.R_OK):
        pytest.skip("this kernel has no /proc/kcore")
    (_, address), *_ = places_of(target.canary, plain.pid)
    frame = frame_of(plain.pid, address)
    try:
        seen = read_kcore(frame, len(target.canary)) if frame else b""
    except OSError as error:
        pytest.skip(f"/proc/kcore does not show ordinary memory here ({error.strerror})")
    if seen != target.canary:
        pytest.skip("/proc/kcore does not show ordinary memory here")
    for mapping in secret_mappings(secret):
        frame = frame_of(secret.pid, mapping.start)
        try:
            page = read_kcore(frame, 4096) if frame else b""
        except OSError:
            continue  # not in the map: there is nothing to read
        assert not any(page)


def test_no_file_of_the_store_contains_the_weights_in_clear(secret: DrivenWorld, target: Target):
    files = [path for path in target.root.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".flex", ".img"}
    assert not any(target.canary in path.read_bytes() for path in files)


def test_the_process_has_no_open_file_but_those_it_needs(secret: DrivenWorld, target: Target):
    links = [os.readlink(link) for link in Path(f"/proc/{secret.pid}/fd").iterdir()]
    others = [link for link in links if not link.startswith(str(target.root))]
    sockets = [link for link in others if link.startswith("socket:")]
    assert len(sockets) == 1, "the channel, and no other"
    assert sum(link.startswith("pipe:") for link in others) <= 2, "standard output and error"
    assert not any("memfd" in link or "secretmem" in link for link in links)


def test_the_process_can_gain_no_privileges_and_leaves_no_core(secret: DrivenWorld):
    status = Path(f"/proc/{secret.pid}/status").read_text()
    assert "NoNewPrivs:\t1\n" in status
    assert resource.prlimit(secret.pid, resource.RLIMIT_CORE) == (0, 0)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_dumps_no_core(target: Target, number: signal.Signals):
    with target.open("plain") as world:
        os.kill(world.pid, number)
        _, status = os.waitpid(world.pid, 0)
    assert os.WTERMSIG(status) == number
    assert not os.WCOREDUMP(status)


READ_MAPS = "import sys; open(f'/proc/{sys.argv[1]}/mem', 'rb')"
POWERLESS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


def test_a_process_of_the_same_user_cannot_look_inside(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    # Victim and attacker are one user without any capability: only the hardening is between them.
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nexec {" ".join(POWERLESS)} {sys.executable} "$@"\n')
    script.chmod(0o755)

    def look_into(pid: int) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*POWERLESS, sys._base_executable, "-c", READ_MAPS, str(pid)], capture_output=True, check=False
        )

    bystander = subprocess.Popen([*POWERLESS, "sleep", "60"])
    try:
        while "sleep" not in Path(f"/proc/{bystander.pid}/comm").read_text():
            pass
        assert look_into(bystander.pid).returncode == 0, "the attack does not work on anyone"
    finally:
        bystander.kill()
        bystander.wait()
    monkeypatch.setattr(sys, "executable", str(script))
    with target.open("plain") as world:
        attempt = look_into(world.pid)
    assert b"PermissionError" in attempt.stderr
