"""Attacks on a kernel that lets nobody look into a process: they end in words, and claim nothing."""

from __future__ import annotations

import errno
import os
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexserve.attacks import linux
from flexserve.attacks.attempt import Verdict, attempt
from flexserve.attacks.linux import Scene
from flexserve.attacks.target import Target
from flexserve.platforms.linux import injection
from flexserve.platforms.linux import kernel_views as views

CANARY = b"a canary that these tests look for in memory"
HELD = bytearray(CANARY)  # somewhere in this process, which plays both worlds
LOOKING = [
    linux.read_proc_mem,
    linux.read_process_vm,
    linux.peek,
    linux.search,
    linux.search_after_recalls,
    linux.drive_as_debugger,
    linux.search_for_key,
]


class World:
    """What an attack asks of a world: to be there, and to serve."""

    pid = os.getpid()

    def recall(self, _demand: int | None) -> None: ...

    def generate(self, _model: str, _prompt: str, _tokens: int) -> None: ...


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    (tmp_path / "key").write_bytes(bytes(range(32)))
    world: Any = World()
    return Scene(Target(tmp_path, tmp_path / "key", CANARY), world, world)


def refuse(*_whatever: object) -> Any:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("attack", LOOKING, ids=lambda attack: attack.__name__)
def test_what_the_kernel_refuses_for_any_process_is_not_shown(
    attack: Callable[[Scene], str], scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("read_mem", "read_vm", "peek"):
        monkeypatch.setattr(views, name, refuse)
    monkeypatch.setattr(views, "children_of", lambda _pid: [os.getpid()])
    made = attempt(attack, scene)
    assert made.verdict is Verdict.NOT_RUN
    assert "the kernel refuses it for any process" in made.detail


@pytest.mark.parametrize("attack", [linux.drive_as_debugger, linux.patch_code])
def test_an_attack_that_the_kernel_refuses_later_is_not_shown_either(
    attack: Callable[[Scene], str], scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(injection, "seized", refuse)
    monkeypatch.setattr(linux, "_patch", refuse)
    assert attempt(attack, scene).verdict is Verdict.NOT_RUN


@pytest.mark.parametrize("attack", [linux.search, linux.search_after_recalls])
def test_a_search_that_the_kernel_refuses_for_the_protected_process_alone_is_stopped(
    attack: Callable[[Scene], str], scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    protected: Any = types.SimpleNamespace(pid=1 << 22, recall=World().recall, generate=World().generate)
    places_of = views.places_of

    def guarded(pattern: bytes, pid: int) -> Any:
        return refuse() if pid == protected.pid else places_of(pattern, pid)

    monkeypatch.setattr(views, "places_of", guarded)
    made = attempt(attack, Scene(scene.target, protected, scene.plain))
    assert made.verdict is Verdict.STOPPED
    assert "the kernel refuses it" in made.detail
