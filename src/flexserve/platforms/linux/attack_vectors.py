"""Attack vectors of root against the secure process on this host: which are open, and what closes them.

`memfd_secret` keeps its pages from being read from outside. Who makes the process itself copy them out,
by driving it as a debugger does or by writing into its code or stack, has them all the same. What
stands against that is the kernel's configuration, so it is asked, never assumed.
"""

from __future__ import annotations

import dataclasses
import enum
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
_LOCKDOWN = Path("/sys/kernel/security/lockdown")
_MODULES = Path("/proc/sys/kernel/modules_disabled")
_COMMAND_LINE = Path("/proc/cmdline")
_NO_ATTACH = 3  # of Yama: for root, too, and until the next boot


class Vector(enum.Enum):
    """What root can try."""

    ATTACH = "attach as a debugger and have the process copy its memory out"
    WRITE = "read ordinary memory and write code or stack through /proc/PID/mem"
    KEY = "read the device key's file, which opens the sealed models"
    MODULE = "load code into the kernel, which can map every page"
    TRACE = "have the kernel's own instruments (BPF programs, uprobes) copy memory of the process"


DESCRIBED = (Vector.ATTACH, Vector.WRITE)  # which the label is about


@dataclasses.dataclass(frozen=True, slots=True)
class AttackVector:
    """A vector in, and how this host stands to it. `closed_by` "": it is open."""

    vector: Vector
    closed_by: str = ""

    @property
    def open(self) -> bool:
        """Whether root gets in by it."""
        return not self.closed_by


def assess(pid: int | str = "self", vectors: Iterable[Vector] = Vector) -> dict[Vector, AttackVector]:
    """Return `vectors` against a process (the secure one), open or closed as this host has them."""
    return {vector: AttackVector(vector, _closed_by(vector, pid)) for vector in vectors}


def _closed_by(vector: Vector, pid: int | str) -> str:
    yama = "Yama: kernel.yama.ptrace_scope=3" if yama_scope() == _NO_ATTACH else ""
    match vector:
        case Vector.ATTACH:
            guard = "the process is traced by a companion of its own, and nobody else can"
            return yama or (guard if _guarded(pid) else "")
        case Vector.WRITE:
            return yama
        case Vector.KEY:
            return ""
        case Vector.MODULE:
            return _no_modules()
        case Vector.TRACE:
            return "" if config("BPF_EVENTS") is not False else "this kernel has no such instruments"


def describe(there: Mapping[Vector, AttackVector]) -> str:
    """Return the label's sentence on root, with the attack vectors DESCRIBED as they are."""
    if not there[Vector.WRITE].open:
        return "Kept out: root's debuggers and /proc/PID/mem, too; not the device key's file, nor the kernel."
    if not there[Vector.ATTACH].open:
        return "Kept out: users and debuggers; root still gets in through /proc/PID/mem (`flexserve doctor`)."
    return "Kept out: users; root gets in by attaching or through /proc/PID/mem (`flexserve doctor`)."


def parent_of(pid: int) -> int:
    """Return the parent of a process; 0 when there is no such process."""
    return _status(pid, "PPid")


def yama_scope() -> int | None:
    """Return kernel.yama.ptrace_scope (None: the kernel has no Yama)."""
    text = _read(_YAMA)
    return int(text) if text else None


def lockdown() -> str:
    """Return the kernel's lockdown: none, integrity, confidentiality; "" where it is unknown."""
    return next((word.strip("[]") for word in _read(_LOCKDOWN).split() if word.startswith("[")), "")


def config(option: str) -> bool | None:
    """Return whether the running kernel was built with CONFIG_`option` (None: nobody tells)."""
    import gzip

    try:
        text = gzip.decompress(Path("/proc/config.gz").read_bytes()).decode()
    except OSError:
        text = _read(Path(f"/boot/config-{os.uname().release}"))
    if not text:
        return None
    return any(f"CONFIG_{option}={value}\n" in text for value in "ym")


def _no_modules() -> str:
    if lockdown() in ("integrity", "confidentiality"):
        return f"lockdown: {lockdown()}"
    if _read(_MODULES) == "1" or "nomodule" in _read(_COMMAND_LINE).split():
        return "the kernel loads no modules any more"
    if not _MODULES.exists() and config("MODULES") is False:
        return "the kernel knows no modules"
    return ""


def _guarded(pid: int | str) -> bool:
    """Return whether a process is traced by its parent, which it traces in turn: nobody else can attach."""
    tracer = _status(pid, "TracerPid")
    own = _status(pid, "Pid")
    return tracer != 0 and tracer == _status(pid, "PPid") and _status(tracer, "TracerPid") == own


def _status(pid: int | str, field: str) -> int:
    for line in _read(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
