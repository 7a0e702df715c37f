"""Root against a running secure world: nothing the kernel offers shows what Flex-Mem holds.

The attacks themselves are those of `flexserve attack`; what follows them looks at how the process stands.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flexserve.attacks import licences, linux
from flexserve.attacks.attempt import Gained, Verdict, attempt
from flexserve.attacks.linux import Scene
from flexserve.attacks.target import Target
from flexserve.platforms.linux.attack_vectors import AttackVector, Vector, assess
from flexserve.platforms.linux.kernel_views import Mapping
from flexserve.trusted.store.store import Store

pytestmark = [pytest.mark.root, pytest.mark.engine]
OPEN_TO_ROOT = {  # unless this host's kernel is told otherwise
    linux.drive_as_debugger: Vector.ATTACH,
    linux.patch_code: Vector.WRITE,
    linux.read_key_file: Vector.KEY,
}


@pytest.mark.parametrize("attack", linux.ATTACKS, ids=lambda attack: attack.__name__)
def test_the_attack_is_stopped(attack: Callable[[Scene], str], scene: Scene):
    made = attempt(attack, scene)
    if made.verdict is Verdict.NOT_RUN:
        pytest.skip(made.detail)
    if attack in OPEN_TO_ROOT and assess(scene.secret.pid)[OPEN_TO_ROOT[attack]].open:
        assert made.verdict is Verdict.OPEN, made.detail
    else:
        assert made.verdict is Verdict.STOPPED, made.detail


@pytest.mark.parametrize(
    "attack", [licences.roll_a_model_back, licences.roll_a_licence_back, licences.put_a_key_into_the_evidence]
)
def test_a_real_secure_world_stops_attacks_on_licences(attack: Callable[[Scene], str], scene: Scene):
    made = attempt(attack, scene)
    assert made.verdict is Verdict.STOPPED, made.detail


def test_what_succeeds_on_a_road_that_the_label_calls_closed_breaks_a_promise(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
):
    closed = {vector: AttackVector(vector, "somebody said so") for vector in Vector}
    monkeypatch.setattr(linux, "assess", lambda _pid: closed)
    made = attempt(linux.read_key_file, scene)
    assert made.verdict is Verdict.SUCCEEDED
    assert "somebody said so" in made.detail


class Unprotected(Scene):
    """A scene whose world under attack is the unprotected one."""

    def secret_mappings(self) -> list[Mapping]:
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


def test_the_store_holds_sealed_files_alone(scene: Scene):
    files = [path for path in scene.target.root.rglob("*") if path.is_file() and path.name != "ledger.lock"]
    kinds = {path.suffix for path in files}
    assert {".flex", ".img"} <= kinds <= {".flex", ".img", ".kv"}  # an idle server seals KV


def test_the_process_has_no_open_file_but_those_it_needs(scene: Scene):
    folder = Path(f"/proc/{scene.secret.pid}/fd")
    links = [os.readlink(link) for link in folder.iterdir() if link.name not in "012"]
    store = (str(scene.target.root), *(f"/{folder}/" for folder in Store.FOLDERS))  # its root, if it has one
    others = [link for link in links if not link.startswith(store)]
    sockets = [link for link in others if link.startswith("socket:")]
    assert len(sockets) == 3, "the channel, its helper's and its key holder's"
    rest = {link for link in others if link not in sockets}
    assert rest == {f"/{scene.secret.pid}/statm", "/memfd:zeros (deleted)"}


def test_the_process_can_gain_no_privileges_and_leaves_no_core(scene: Scene):
    for thread in Path(f"/proc/{scene.secret.pid}/task").iterdir():
        status = dict(line.split(":\t", 1) for line in (thread / "status").read_text().splitlines())
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        assert int(status["CapEff"], 16) & ~(1 << 14) == 0, (
            "none but CAP_IPC_LOCK, and that only where needed"
        )
        assert "0" not in status["Uid"].split()
    limits = Path(f"/proc/{scene.secret.pid}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)


def test_the_process_is_alone(scene: Scene):
    for kind in ("net", "mnt", "ipc", "uts"):
        assert os.readlink(f"/proc/{scene.secret.pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    assert sorted(os.listdir(f"/proc/{scene.secret.pid}/root")) == sorted(Store.FOLDERS)


def test_the_label_says_that_the_process_is_sandboxed(scene: Scene):
    assert "The secure process is sandboxed." in scene.secret.welcome.summary


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_dumps_no_core(scene: Scene, number: signal.Signals):
    with scene.target.open("plain") as world:
        os.kill(world.pid, number)
        assert world.wait() == -number
    assert not list(Path().glob("core*"))


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
            [
                *POWERLESS,
                sys._base_executable,  # type: ignore[attr-defined]
                "-c",
                READ_MAPS,
                str(pid),
            ],
            capture_output=True,
            check=False,
        )

    bystander = subprocess.Popen([*POWERLESS, "sleep", "60"])
    try:
        while "sleep" not in Path(f"/proc/{bystander.pid}/comm").read_text():
            pass
        assert look_into(bystander.pid).returncode == 0, "the attack does not work on anyone"
    finally:
        bystander.kill()
        bystander.wait()
    target = Target.make(tmp_path / "target")  # that of the scene belongs to its secure world's user
    monkeypatch.setattr(sys, "executable", str(script))
    with target.open("plain") as world:
        attempt = look_into(world.pid)
    assert b"PermissionError" in attempt.stderr
