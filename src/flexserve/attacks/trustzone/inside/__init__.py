"""A compromised kernel on the emulated TrustZone machine, against a secure world inside it (S-EL1 and S-EL0).

A model answers at S-EL0 while the attacks are made, and has to say what it says when nobody interferes. What
must not be reached is first reached where nothing forbids it.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from flexserve.attacks.attempt import Attempt, Pointless, attempt
from flexserve.attacks.trustzone import calls, devices, reach, switching
from flexserve.attacks.trustzone.inside import (
    ciphertext,
    ends,
    faults,
    lending,
    messages,
    protection,
    restarts,
)
from flexserve.attacks.trustzone.inside.ends import Ended
from flexserve.attacks.trustzone.inside.exposure import Exposed, dump_a_server
from flexserve.attacks.trustzone.inside.restarts import Driven
from flexserve.attacks.trustzone.inside.scene import Inside
from flexserve.attacks.trustzone.scene import CPUS, RAM_BYTES
from flexserve.emulator.images import images_for
from flexserve.emulator.machine import Machine
from flexserve.errors import NormalWorldError
from flexserve.harness.inner import NotDone

S = TypeVar("S", Inside, Driven, Ended)


def meanwhile(attack: Callable[[Inside], str]) -> Callable[[Inside], str]:
    """Return the attack made while the model answers over and over."""

    @functools.wraps(attack)
    def made(scene: Inside) -> str:
        with scene.computing():
            return attack(scene)

    return made


#: While the application holds nothing: protection may go off.
ATTACKS_BEFORE: tuple[Callable[[Inside], str], ...] = (protection.toggle_protection,)

#: On memory that it has, while it computes in that.
ATTACKS_ON_PAGES: tuple[Callable[[Inside], str], ...] = tuple(
    meanwhile(attack)
    for attack in (
        reach.read_as_kernel,
        reach.write_as_kernel,
        reach.execute_as_kernel,
        reach.map_into_program,
        reach.trace_program,
        reach.overwrite_lines,
        reach.translate_through_it,
        reach.reach_hidden,
        devices.copy_by_device,
        devices.lend_buffers_to_virtio,
        devices.move_registers,
        devices.configure_devices,
        calls.grant_what_is_not_its_own,
        calls.take_what_is_not_offered,
        calls.call_at_random,
        switching.turn_cpus_off_and_on,
    )
)

#: On its CPU time, its messages, its ciphertext.
ATTACKS: tuple[Callable[[Inside], str], ...] = (
    lending.lend_with_hostile_registers,
    lending.lend_from_all_cpus,
    lending.starve_cores,
    lending.count_what_it_does,
    lending.manage_power_meanwhile,
    messages.change_between_check_and_use,
    messages.change_sealed_kv_meanwhile,
    messages.write_behind_and_ahead,
    messages.answer_what_was_not_asked,
    ciphertext.load_other_weights,
    ciphertext.seal_again,
    ciphertext.resume_other_conversations,
    ciphertext.lie_as_a_disk,
    switching.read_after_recall,
)

#: The end of it.
ATTACKS_LAST: tuple[Callable[[Inside], str], ...] = (faults.have_it_fault,)

#: In this order, on a machine that ends and starts again.
ATTACKS_ON_DRIVEN = restarts.ATTACKS

#: On a server, whose machine or client ends in the midst of answers.
ATTACKS_ON_SERVED = ends.ATTACKS


def run(say: Callable[[str], None]) -> Iterator[Attempt]:
    """Set the scene and make every attack.

    Raises NormalWorldError where no machine can be had, and with the machine's last words when an attack
    ends it.
    """
    parts = images_for(ram_bytes=RAM_BYTES, cpus=CPUS, progress=say, inside=True)
    say("booting the machine under attack")
    with _folder() as folder, Inside.set(parts, folder) as scene:
        for attack in ATTACKS_BEFORE:
            yield _survived(attack, scene, scene.machine)
        scene.hold()
        for attack in (*ATTACKS_ON_PAGES, *ATTACKS, *ATTACKS_LAST):
            yield _survived(attack, scene, scene.machine)
    say("booting a machine that is reset, killed and switched off")
    with _folder() as folder, Driven.set(parts, folder, seed=secrets.randbits(32)) as driven:
        for hostile in ATTACKS_ON_DRIVEN:
            yield _survived(hostile, driven, driven.machine)
    say("booting a machine that a server runs on")
    with _folder() as folder, Exposed.set(folder, "inside") as exposed:
        yield attempt(dump_a_server, exposed)
    say("booting a machine of a server that is ended")
    with _folder() as folder, Ended.set(parts, folder, seed=secrets.randbits(32)) as ended:
        for attack_on_served in ATTACKS_ON_SERVED:
            yield attempt(possible(attack_on_served), ended)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="flexserve-attack-") as folder:
        yield Path(folder)


def _survived(attack: Callable[[S], str], scene: S, machine: Machine) -> Attempt:
    try:
        return attempt(possible(attack), scene)
    except NormalWorldError as error:
        raise NormalWorldError(
            f"The attack {attack.__name__!r} broke the machine: {error.message} {machine.last_words()}",
            hint="Report this as a bug.",
            code="machine_broken",
        ) from error


def possible(attack: Callable[[S], str]) -> Callable[[S], str]:
    """Return the attack, pointless where the application or this host refuses what it needs to begin with."""

    @functools.wraps(attack)
    def made(scene: S) -> str:
        try:
            return attack(scene)
        except NotDone as refusal:
            raise Pointless(f"the application does not do what this needs: {refusal}") from refusal
        except PermissionError:
            raise Pointless("this user may not look into a process of its own: run it as root") from None

    return made
