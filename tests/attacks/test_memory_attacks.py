"""Root against a running secure world: nothing the kernel offers shows what Flex-Mem holds.

The attacks themselves are those of `flexserve attack`; what follows them looks at how the process stands.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flexserve.attacks import linux
from flexserve.attacks.attempt import Gained, Verdict, attempt
from flexserve.attacks.linux import Scene

pytestmark = pytest.mark.root


@pytest.mark.parametrize("attack", linux.ATTACKS, ids=lambda attack: attack.__name__)
def test_the_attack_is_stopped(attack: Callable[[Scene], str], scene: Scene):
    made = attempt(attack, scene)
    if made.verdict is Verdict.NOT_RUN:
        pytest.skip(made.detail)
    assert made.verdict is Verdict.STOPPED, made.detail


class Unprotected(Scene):
    """A scene whose world under attack is the unprotected one."""

    def secret_mappings(self) -> list[linux.views.Mapping]:
        place, _ = self.canary_in_plain()
        return [place]


@pytest.mark.parametrize(
    "attack", [linux.read_proc_mem, linux.read_process_vm, linux.peek, linux.search, linux.dump_with_gdb]
)
def test_the_attack_succeeds_where_nothing_protects(attack: Callable[[Scene], str], scene: Scene):
    made = attempt(attack, Unprotected(scene.target, scene.plain, scene.plain))
    if made.verdict is Verdict.NOT_RUN:
        pytest.skip(made.detail)
    assert made.verdict is Verdict.SUCCEEDED


def test_what_an_attack_gained_is_told(scene: Scene):
    def lucky(_scene: Scene) -> str:
        """Want everything."""
        raise Gained("the keys")

    made = attempt(lucky, scene)
    assert (made.verdict, made.aim, made.detail) == (Verdict.SUCCEEDED, "Want everything", "the keys")


def test_all_that_the_world_holds_is_in_secret_memory(scene: Scene):
    held = sum(mapping.end - mapping.start for mapping in scene.secret_mappings())
    status = scene.secret.status()
    (model,) = status.models
    assert held == status.memory.secure
    assert held >= model.resident + model.kv + model.scratch > model.weights


def test_the_store_holds_a_sealed_file_and_an_image_alone(scene: Scene):
    files = [path for path in scene.target.root.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".flex", ".img"}


def test_the_process_has_no_open_file_but_those_it_needs(scene: Scene):
    links = [os.readlink(link) for link in Path(f"/proc/{scene.secret.pid}/fd").iterdir()]
    others = [link for link in links if not link.startswith(str(scene.target.root))]
    sockets = [link for link in others if link.startswith("socket:")]
    assert len(sockets) == 1, "the channel, and no other"
    assert sum(link.startswith("pipe:") for link in others) <= 2, "standard output and error"
    assert not any("memfd" in link or "secretmem" in link for link in links)


def test_the_process_can_gain_no_privileges_and_leaves_no_core(scene: Scene):
    status = Path(f"/proc/{scene.secret.pid}/status").read_text()
    assert "NoNewPrivs:\t1\n" in status
    assert resource.prlimit(scene.secret.pid, resource.RLIMIT_CORE) == (0, 0)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_dumps_no_core(scene: Scene, number: signal.Signals):
    with scene.target.open("plain") as world:
        os.kill(world.pid, number)
        _, status = os.waitpid(world.pid, 0)
    assert os.WTERMSIG(status) == number
    assert not os.WCOREDUMP(status)


READ_MAPS = "import sys; open(f'/proc/{sys.argv[1]}/mem', 'rb')"
POWERLESS = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


def test_a_process_of_the_same_user_cannot_look_inside(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    with scene.target.open("plain") as world:
        attempt = look_into(world.pid)
    assert b"PermissionError" in attempt.stderr
