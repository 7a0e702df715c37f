"""A compromised kernel against a secure world that is inside the machine, on few boots."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flexserve.attacks.attempt import Verdict, attempt
from flexserve.attacks.trustzone import devices, reach
from flexserve.attacks.trustzone.inside import (
    ATTACKS,
    ATTACKS_BEFORE,
    ATTACKS_LAST,
    ATTACKS_ON_DRIVEN,
    ATTACKS_ON_PAGES,
)
from flexserve.attacks.trustzone.inside.exposure import Exposed, dump_a_server
from flexserve.attacks.trustzone.inside.restarts import Driven
from flexserve.attacks.trustzone.inside.scene import Inside
from flexserve.attacks.trustzone.scene import CPUS, RAM_BYTES
from flexserve.emulator import trusted_app
from flexserve.emulator.build import Images
from flexserve.testing.machines import images_of

pytestmark = [pytest.mark.vm, pytest.mark.engine]


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="to dump another process needs root")


@pytest.fixture(scope="module")
def parts() -> Images:
    programs = trusted_app.built(trusted_app.default_cache())
    if programs is None:
        pytest.skip("the trusted application is not built of these sources: `make trusted-app`")
    return images_of(RAM_BYTES, CPUS, application=programs.application)


@pytest.fixture(scope="module")
def scene(parts: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    """The application has the model in memory; what is attacked before that was attacked."""
    with Inside.set(parts, tmp_path_factory.mktemp("inside")) as scene:
        for attack in ATTACKS_BEFORE:
            made = attempt(attack, scene)
            assert made.verdict is Verdict.STOPPED, made.detail
        scene.hold()
        yield scene


class Unprotected(Inside):
    """A scene whose secure page is one that the attacker may reach."""

    def secure(self) -> int:
        return self.own()


ON_WHAT_NOTHING_PROTECTS: tuple[Callable[[Inside], str], ...] = (
    reach.read_as_kernel,
    reach.write_as_kernel,
    reach.execute_as_kernel,
    reach.map_into_program,
    reach.trace_program,
    reach.overwrite_lines,
    reach.translate_through_it,
    devices.copy_by_device,
    devices.lend_buffers_to_virtio,
    devices.move_registers,
    devices.configure_devices,
)


@pytest.mark.parametrize("attack", ON_WHAT_NOTHING_PROTECTS, ids=lambda attack: attack.__name__)
def test_the_attack_succeeds_where_nothing_protects(attack: Callable[[Inside], str], scene: Inside):
    fields = {field.name: getattr(scene, field.name) for field in dataclasses.fields(scene)}
    made = attempt(attack, Unprotected(**fields))
    assert made.verdict is Verdict.SUCCEEDED, made.detail


@pytest.mark.parametrize("attack", [*ATTACKS_ON_PAGES, *ATTACKS], ids=lambda attack: attack.__name__)
def test_the_attack_is_stopped_while_a_model_answers(attack: Callable[[Inside], str], scene: Inside):
    made = attempt(attack, scene)
    assert made.verdict is Verdict.STOPPED, made.detail


@pytest.mark.parametrize("attack", ATTACKS_LAST, ids=lambda attack: attack.__name__)
def test_an_application_that_faults_leaves_nothing(
    attack: Callable[[Inside], str], parts: Images, tmp_path: Path
):
    with Inside.set(parts, tmp_path) as scene:
        scene.hold()
        made = attempt(attack, scene)
    assert made.verdict is Verdict.STOPPED, made.detail


@needs_root
def test_nothing_leaks_when_the_driver_is_dumped_and_killed_and_the_machine_reset_and_cut_off(
    parts: Images, tmp_path: Path
):
    with Driven.set(parts, tmp_path, seed=20) as driven:
        for attack in ATTACKS_ON_DRIVEN:
            made = attempt(attack, driven)
            assert made.verdict is Verdict.STOPPED, f"{made.name}: {made.detail}"


@needs_root
@pytest.mark.usefixtures("parts")
def test_of_a_sealed_request_a_servers_processes_have_no_word_and_no_key(tmp_path: Path):
    with Exposed.set(tmp_path, "inside") as server:
        made = attempt(dump_a_server, server)
    assert made.verdict is Verdict.STOPPED, made.detail


@needs_root
@pytest.mark.usefixtures("parts")
def test_where_models_compute_in_a_process_of_the_host_all_of_it_is_found_there(tmp_path: Path):
    with Exposed.set(tmp_path, "host") as server:
        found = server.found()
    for name in ("the weights", "the prompt", "the answer", "a secret of the request"):
        assert "secure_world.main" in found[name], (name, found)
