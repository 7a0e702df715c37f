"""What a process can still do in its sandbox, and what is said of a layer that could not be had."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flexserve.attacks import inside
from flexserve.normal.process import environment
from flexserve.trusted.store.keys import DeviceKey, derived_keys
from flexserve.trusted.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store, beside which the device's key lies."""
    DeviceKey.load_or_create(tmp_path / "device.key")
    Store.make_folders(tmp_path / "store")
    return tmp_path / "store"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", *words]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", inside.TRIES)
def test_what_an_intruder_tries_works_without_the_sandbox_alone(store: Path, name: str):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        root = store.with_name("device.key").read_bytes()
        prints = map(inside.print_of, (root, *derived_keys(root)))
        words = [name, str(store), str(listener.getsockname()[1]), *prints]
        assert run("-m", inside.__name__, "--open", *words).returncode == inside.REACHED
        assert run("-m", inside.__name__, *words).returncode in (inside.MISSED, -signal.SIGSYS)


# In each, `enter` closes the sandbox and returns what it lacks.
ENTER = """
import json, os, sys, threading
from pathlib import Path
from flexserve.platforms.linux import landlock, sandbox, seccomp
from flexserve.platforms.linux.hardening import harden
store = Path(sys.argv[1])
def enter():
    why = sandbox.isolate()
    harden(keep=set())
    return sandbox.confine(store, ("models", "images", "kv"), not_isolated=why)
"""


def test_files_of_the_store_and_threads_are_what_is_left(store: Path):
    program = """
enter()
Path("models/a").write_text("kept")
os.rename("models/a", "kv/b")
thread = threading.Thread(target=lambda: print(Path("kv/b").read_text()))
thread.start()
thread.join()
"""
    ended = run("-c", ENTER + program, str(store))
    assert (ended.returncode, ended.stdout) == (0, "kept\n")
    assert (store / "kv" / "b").read_text() == "kept"


def test_a_layer_that_cannot_be_had_is_named_with_its_reason(store: Path):
    program = """
landlock.version = lambda: 0
seccomp.available = lambda: False
found = enter()
print(json.dumps([sorted(found.lacking), found.summary]))
"""
    lacking, summary = json.loads(run("-c", ENTER + program, str(store)).stdout)
    assert {"Landlock", "a filter of system calls"} <= set(lacking)
    assert "without" in summary
    assert "Landlock (this kernel has none)" in summary


def test_it_is_not_entered_past_other_threads(store: Path):
    program = """
threading.Thread(target=threading.Event().wait, daemon=True).start()
enter()
"""
    assert "2 threads" in run("-c", ENTER + program, str(store)).stderr


def test_a_helper_names_no_process_outside_though_it_may_signal(store: Path):
    program = """
outside = os.getpid()
why = sandbox.leave_processes()
sandbox.confine_helper()
try:
    print(why) if why else os.kill(outside, 0)
except ProcessLookupError:
    print("nobody", os.getpid())
"""
    said = run("-c", ENTER + program, str(store)).stdout
    if "not permitted" in said:
        pytest.skip("there are no namespaces to be had here")
    assert said == "nobody 1\n"


def test_a_helper_forks_and_opens_nothing(store: Path):
    program = """
sandbox.confine_helper()
child = os.fork()
if child == 0:
    os._exit(7)
ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
try:
    open(store / "../device.key")
except OSError:
    print(ended, "refused")
"""
    assert run("-c", ENTER + program, str(store)).stdout == "7 refused\n"
