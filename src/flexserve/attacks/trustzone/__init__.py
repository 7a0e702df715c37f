"""A compromised kernel on the emulated TrustZone machine, against its monitor.

An attack on what must not be reached is first made on a page of the attacker's own, where it must work.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from flexserve.attacks import licences
from flexserve.attacks.attempt import Attempt, attempt
from flexserve.attacks.trustzone import answers, calls, devices, lpi, npu, reach, switching
from flexserve.attacks.trustzone.answers import Conversation
from flexserve.attacks.trustzone.scene import CPUS, RAM_BYTES, Scene
from flexserve.emulator.images import images_for
from flexserve.emulator.machine import Machine
from flexserve.errors import NormalWorldError

S = TypeVar("S", Scene, Conversation)

ATTACKS: tuple[Callable[[Scene], str], ...] = (
    reach.read_as_kernel,
    reach.write_as_kernel,
    reach.execute_as_kernel,
    reach.reach_granted,
    reach.map_into_program,
    reach.trace_program,
    reach.overwrite_lines,
    reach.translate_through_it,
    reach.reach_hidden,
    calls.grant_what_is_not_its_own,
    calls.take_what_is_not_offered,
    calls.take_before_and_again,
    calls.replay_old_grant,
    calls.call_at_random,
    calls.race_two_cpus,
    devices.copy_by_device,
    devices.lend_buffers_to_virtio,
    devices.move_registers,
    devices.configure_devices,
    npu.reach_registers,
    npu.copy_by_npu,
    npu.point_outside,
    npu.patch_driver,
    npu.reuse_what_is_left,
    npu.keep_it_busy,
    npu.lend_other_code,
    npu.storm_gate,
    lpi.read_by_lpi,
    lpi.alter_by_lpi,
    lpi.flip_by_lpi,
    switching.turn_cpus_off_and_on,
    switching.read_after_recall,
    switching.let_devices_loose_while_off,
    switching.alter_monitor_while_off,  # no protection on this machine from here on
    switching.attest_altered_monitor,
)

#: On a machine that starts again when it is reset.
ATTACKS_BY_RESET: tuple[Callable[[Scene], str], ...] = (switching.reset_machine,)

#: On a machine whose secure world has a model.
ATTACKS_ON_ANSWERS: tuple[Callable[[Conversation], str], ...] = (
    answers.starve,
    answers.lie,
    answers.take_back_meanwhile,
)


def run(say: Callable[[str], None]) -> Iterator[Attempt]:
    """Set the scene and make every attack.

    Raises NormalWorldError where no machine can be had, and with the machine's last words when an attack
    ends it.
    """
    parts, plain = (
        images_for(ram_bytes=RAM_BYTES, cpus=CPUS, progress=say, npu=npu) for npu in (True, False)
    )
    say("booting the machine under attack")
    with Scene.set(parts) as scene:
        for attack in ATTACKS:
            yield _survived(attack, scene, scene.machine)
    say("booting a machine that can be reset")
    with Scene.set(parts, resets=True) as scene:
        for attack in ATTACKS_BY_RESET:
            yield _survived(attack, scene, scene.machine)
    say("booting a machine with a model")
    with (
        tempfile.TemporaryDirectory(prefix="flexserve-attack-") as folder,
        Conversation.set(plain, Path(folder)) as talk,
    ):
        for hostile in (*ATTACKS_ON_ANSWERS, *licences.ATTACKS):
            yield _survived(hostile, talk, talk.machine)


def _survived(attack: Callable[[S], str], scene: S, machine: Machine) -> Attempt:
    try:
        return attempt(attack, scene)
    except NormalWorldError as error:
        raise NormalWorldError(
            f"The attack {attack.__name__!r} broke the machine: {error.message} {machine.last_words()}",
            hint="Report this as a bug.",
            code="machine_broken",
        ) from error
