"""The emulated machine: `flexserve boot`, and what other commands start for --platform trustzone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import typer

from flexserve.cli import terminal
from flexserve.cli.options import AsJson, GuestCpus, GuestMemory, Npu
from flexserve.units import format_size

if TYPE_CHECKING:
    from flexserve.emulator.machine import Machine
    from flexserve.emulator.packages import Progress
    from flexserve.emulator.store_disk import StoreDisk
    from flexserve.normal.guest import SecureCore
    from flexserve.settings import Settings

_POLL = 0.5  # seconds between two looks whether the machine lives


def register(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command("boot", epilog="Example: flexserve boot --guest-memory 512M --guest-cpus 1")(boot)


def boot(
    *,
    guest_memory: GuestMemory = None,
    guest_cpus: GuestCpus = None,
    npu: Npu = None,
    as_json: AsJson = False,
) -> None:
    """Boot the emulated machine, show its state, and keep it until Ctrl-C.

    Builds what it lacks first: the monitor, the driver and a small Linux (minutes, once). Nothing serves
    on it: that is `flexserve serve --platform trustzone`.
    """
    from flexserve import settings
    from flexserve.errors import PeerError

    chosen = settings.load(
        platform="trustzone", secure_world="host", guest_memory=guest_memory, guest_cpus=guest_cpus, npu=npu
    )
    with machine_for(chosen, silent=as_json) as machine, contextlib.suppress(KeyboardInterrupt):
        state = _state(machine)
        if as_json:
            terminal.show_json(state)
        else:
            _show(state)
            terminal.note("Ctrl-C ends it.")
        while machine.alive:
            time.sleep(_POLL)
        raise PeerError("The machine ended by itself.", hint="Run `flexserve boot` again.")


@contextlib.contextmanager
def machine_for(settings: Settings, *, silent: bool = False) -> Iterator[Machine]:
    """Boot the machine that `settings` ask for, for the length of the block. Nothing runs inside of it.

    Call it from the main thread: the kernel ends the emulator with the thread that started it. Raises
    NormalWorldError when something it needs is missing or it does not come up.
    """
    tell = _Teller(silent=silent)
    with _maker(settings, tell)() as machine:
        _tell_of_boot(machine, tell)
        yield machine


@contextlib.contextmanager
def core_for(settings: Settings) -> Iterator[SecureCore | None]:
    """Boot what a secure world runs on, for the length of the block; None for this machine.

    As `machine_for`; of a secure world inside, what that consists of is built, too. Raises CallerError when
    there is no device key for it.
    """
    if settings.platform == "linux":
        yield None
    elif settings.is_inside:
        from flexserve.emulator.inner_core import InnerCore
        from flexserve.emulator.store_disk import StoreDisk

        tell = _Teller()
        with StoreDisk(settings.models) as disk, InnerCore(_maker(settings, tell, disk)) as core:
            _tell_of_boot(core.machine, tell)
            if not disk.is_kept:
                tell("another machine has the disk of these models: this one makes each ready for itself")
            yield core
    else:
        with machine_for(settings) as machine:
            yield machine


def _tell_of_boot(machine: Machine, tell: Progress) -> None:
    tell(f"the machine booted in {machine.boot_seconds:.1f} s")


class _Teller:
    """Tells at the terminal what is done meanwhile, unless it is silent."""

    def __init__(self, *, silent: bool = False) -> None:
        self._silent = silent

    def __call__(self, text: str) -> None:
        if not self._silent:
            terminal.note(text)


def _maker(settings: Settings, tell: Progress, disk: StoreDisk | None = None) -> Callable[[], Machine]:
    """Build what is missing, and return what makes a machine that is not booted yet.

    One that has a `disk` has a secure world inside.
    """
    from flexserve.emulator.device import Device
    from flexserve.emulator.images import images_for
    from flexserve.emulator.machine import Machine

    ram_bytes, cpus, inside = settings.guest_memory, settings.guest_cpus, disk is not None
    npu = settings.npu and not inside
    device = Device(settings.device_key, settings.models) if inside else None
    images = images_for(ram_bytes=ram_bytes, cpus=cpus, progress=tell, npu=npu, inside=inside)

    def make() -> Machine:
        disks = [disk.made_ready(images.firmware.read_bytes())] if disk is not None else []
        return Machine(images, ram_bytes=ram_bytes, cpus=cpus, npu=npu, disks=disks, device=device)

    return make


def _state(machine: Machine) -> dict[str, Any]:
    sample, monitor = machine.memory().sample(), machine.monitor()
    return {
        "memory": machine.ram_bytes,
        "cpus": machine.cpus,
        "npu": machine.has_npu,
        "boot_seconds": round(machine.boot_seconds, 3),
        "emulator_pid": machine.pid,
        "monitor": {"pages": monitor.pages, "stopped": monitor.faults},
        "guest": {"total": sample.total, "available": sample.available},
    }


def _show(state: dict[str, Any]) -> None:
    guest, monitor = state["guest"], state["monitor"]
    terminal.say(
        f"machine   {format_size(state['memory'])}, {state['cpus']} CPUs"
        f"{', an NPU' if state['npu'] else ''}, emulated by {state['emulator_pid']}"
    )
    pages = ", ".join(f"{format_size(size)} {name.lower()}" for name, size in monitor["pages"].items())
    terminal.say(f"monitor   {pages}; {monitor['stopped']} accesses stopped")
    terminal.say(f"guest     {format_size(guest['available'])} of {format_size(guest['total'])} available")
