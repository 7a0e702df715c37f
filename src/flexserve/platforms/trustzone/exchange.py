"""What secure world and monitor tell each other through the mailbox: commands go out, events come in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from flexserve.errors import MonitorError
from flexserve.platforms.trustzone import abi

# ---- commands -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Attach:
    """A secure world begins."""

    epoch: int


@dataclasses.dataclass(frozen=True, slots=True)
class Gone:
    """The secure world ended: everything it held goes back."""

    epoch: int


@dataclasses.dataclass(frozen=True, slots=True)
class Want:
    """Ask the OS for `pages` pages; fewer than `minimum` are of no use."""

    serial: int
    pages: int
    minimum: int


@dataclasses.dataclass(frozen=True, slots=True)
class Commit:
    """Take GRANTED pages into use."""

    ipa: int
    pages: int
    serial: int


@dataclasses.dataclass(frozen=True, slots=True)
class Recall:
    """Stop using SECURE pages and offer them to the OS."""

    ipa: int
    pages: int
    serial: int


@dataclasses.dataclass(frozen=True, slots=True)
class Refuse:
    """Say that GRANTED pages are not wanted."""

    ipa: int
    pages: int
    serial: int


@dataclasses.dataclass(frozen=True, slots=True)
class NpuWant:
    """Ask the OS for the NPU."""

    serial: int


@dataclasses.dataclass(frozen=True, slots=True)
class NpuDrive:
    """Have the NPU's driver start a job: `commands` commands at IOVA `list`, translated by `tables`."""

    list: int
    commands: int
    tables: int  # physical address
    serial: int


@dataclasses.dataclass(frozen=True, slots=True)
class NpuRelease:
    """Give the NPU back, or want it no more."""

    serial: int


Command = Attach | Gone | Want | Commit | Recall | Refuse | NpuWant | NpuDrive | NpuRelease

_KINDS: dict[type, abi.Command] = {
    Attach: abi.Command.ATTACH,
    Gone: abi.Command.GONE,
    Want: abi.Command.WANT,
    Commit: abi.Command.COMMIT,
    Recall: abi.Command.RECALL,
    Refuse: abi.Command.REFUSE,
    NpuWant: abi.Command.NPU_WANT,
    NpuDrive: abi.Command.NPU_DRIVE,
    NpuRelease: abi.Command.NPU_RELEASE,
}


def slot_of(command: Command) -> tuple[int, ...]:
    """Return what is written into a slot for `command`: its kind, then its arguments."""
    kind = _KINDS[type(command)]
    if isinstance(command, NpuDrive):
        return kind, command.list | command.commands << 32, command.tables, command.serial
    return kind, *dataclasses.astuple(command)


# ---- events -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Granted:
    """The OS handed these pages over."""

    ipa: int
    pages: int


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """The OS has done for a WANT what it will do: `pages` pages, it says."""

    serial: int
    pages: int


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """What came of the command with this serial."""

    serial: int
    status: abi.Status


@dataclasses.dataclass(frozen=True, slots=True)
class Taken:
    """The OS has these pages back."""

    ipa: int
    pages: int


@dataclasses.dataclass(frozen=True, slots=True)
class Pressure:
    """The OS wants `pages` pages back within `deadline_ms`, it says."""

    pages: int
    deadline_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class Detached:
    """The driver is leaving and wants everything back."""


@dataclasses.dataclass(frozen=True, slots=True)
class Quiet:
    """Nothing happened for a second. Not the monitor's: a moment to put things in order."""


@dataclasses.dataclass(frozen=True, slots=True)
class NpuGranted:
    """The NPU is ours, for the NpuWant with this serial."""

    serial: int


@dataclasses.dataclass(frozen=True, slots=True)
class NpuAsked:
    """The OS wants the NPU back within `deadline_ms`, it says."""

    deadline_ms: int


Event = Granted | Answer | Done | Taken | Pressure | Detached | Quiet | NpuGranted | NpuAsked


_EVENTS: dict[int, Callable[[int, int], Event]] = {
    abi.Event.GRANTED: Granted,
    abi.Event.ANSWER: Answer,
    abi.Event.DONE: lambda serial, status: Done(
        serial, abi.Status(status - (1 << 64) if status >> 63 else status)
    ),
    abi.Event.TAKEN: Taken,
    abi.Event.PRESSURE: Pressure,
    abi.Event.DETACHED: lambda _a, _b: Detached(),
    abi.Event.NPU_GRANTED: lambda serial, _b: NpuGranted(serial),
    abi.Event.NPU_ASKED: lambda deadline_ms, _b: NpuAsked(deadline_ms),
}


def event_of(kind: int, a: int, b: int) -> Event:
    """Return the event that a slot tells of. Raises MonitorError for what is none."""
    if kind not in _EVENTS:
        raise MonitorError("The monitor tells of something unknown.", hint="Restart the machine.")
    return _EVENTS[kind](a, b)
