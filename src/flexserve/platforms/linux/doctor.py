"""What this host offers to a secure world, line by line: found, what it keeps out, how to have it.

Everything is asked of the kernel itself, by trying where that is possible. Read-only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from flexserve.errors import NormalWorldError
from flexserve.platforms.linux import companion, landlock, seccomp
from flexserve.platforms.linux.attack_vectors import (
    AttackVector,
    Vector,
    assess,
    config,
    lockdown,
    yama_scope,
)
from flexserve.platforms.linux.normal_memory import LinuxNormalMemory
from flexserve.platforms.linux.secure_memory import locks_without_limit, probe_secret_memory
from flexserve.units import GIB, MIB, format_size

_SOME = 256 * MIB  # of secret memory: less runs no model worth serving
_FAST = {"x86_64": ("avx2", "fma", "f16c", "aes"), "aarch64": ("asimd", "asimddp", "aes")}

# Only root may: the limit that users can raise by themselves is raised already. Root without CAP_SYS_RESOURCE
# raises nobody's, and can lend the capability that knows no limit.
_LIFT_LOCK_LIMIT = """now, in this shell:
    sudo prlimit --pid $$ --memlock=unlimited:unlimited
  for good, from the next login on:
    echo "$USER - memlock unlimited" | sudo tee /etc/security/limits.d/flexserve.conf
  without sudo: su -c "prlimit --pid $$ --memlock=unlimited:unlimited"
  where that is not permitted, as to root in some containers, a shell that may lock all the same:
    sudo env HOME="$HOME" PATH="$PATH" setpriv --reuid=$(id -u) --regid=$(id -g) --init-groups \\
      --inh-caps=+ipc_lock --ambient-caps=+ipc_lock bash
  in a systemd unit: LimitMEMLOCK=infinity; of a container: --ulimit memlock=-1"""


class State(enum.Enum):
    """How this host does in one respect."""

    GOOD = "good"
    WEAK = "weak"  # it works, and keeps out less than it could
    MISSING = "missing"  # the secure memory of this platform cannot be had


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One respect."""

    name: str
    state: State
    found: str
    keeps_out: str  # what it keeps out, or is good for
    remedy: str = ""  # the command or setting that puts it right


def findings() -> Iterator[Finding]:
    """Look at everything."""
    for look in _LOOKS:
        yield look()


def vectors_against_a_new_process() -> dict[Vector, AttackVector]:
    """Return root's attack vectors against a process started now with a companion, as a secure one is."""
    program = (
        "import json; from flexserve.platforms.linux.attack_vectors import assess; "
        "print(json.dumps({vector.name: found.closed_by for vector, found in assess().items()}))"
    )
    command = companion.command([sys.executable, "-I", "-c", program])
    ended = subprocess.run(command, capture_output=True, check=True)
    return {Vector[name]: AttackVector(Vector[name], by) for name, by in json.loads(ended.stdout).items()}


def _memfd_secret() -> Finding:
    keeps = "reads of Flex-Mem from outside: /proc/PID/mem, process_vm_readv, kcore, swap, core dumps"
    try:
        probe_secret_memory()
    except NormalWorldError as error:
        return Finding("memfd_secret", State.MISSING, error.message, keeps, error.hint or "")
    return Finding("memfd_secret", State.GOOD, "this kernel has it", keeps)


def _locked_memory() -> Finding:
    keeps = "a refusal in the middle of a request: all of Flex-Mem counts as locked"
    try:
        probe_secret_memory(_SOME)
    except NormalWorldError as error:
        remedy = _LIFT_LOCK_LIMIT if error.code == "locked_memory_limit" else error.hint
        return Finding("locked memory", State.MISSING, error.message, keeps, remedy)
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    with contextlib.suppress(OSError):  # a limit beyond all addresses
        if locks_without_limit():
            return Finding("locked memory", State.GOOD, "as much as there is", keeps)
    state = State.GOOD if limit >= 4 * GIB else State.WEAK
    return Finding("locked memory", state, format_size(limit), keeps, _LIFT_LOCK_LIMIT)


def _yama() -> Finding:
    keeps = "root: attaching to the secure process, and reading and writing it through /proc/PID/mem"
    scope = yama_scope()
    if scope is None:
        remedy = "boot a kernel with CONFIG_SECURITY_YAMA and yama among lsm="
        return Finding("Yama", State.WEAK, "this kernel has none", keeps, remedy)
    found = f"kernel.yama.ptrace_scope={scope}"
    if scope == 3:
        return Finding("Yama", State.GOOD, f"{found}, until the next boot", keeps)
    remedy = "sysctl -w kernel.yama.ptrace_scope=3 (until the next boot no debugger works on this machine)"
    return Finding("Yama", State.WEAK, found, keeps, remedy)


def _lockdown() -> Finding:
    keeps = "root: kernel modules, /proc/kcore, kexec, writing to the kernel's memory"
    level = lockdown()
    if level in ("integrity", "confidentiality"):
        return Finding("lockdown", State.GOOD, level, keeps)
    closed = assess()[Vector.MODULE].closed_by
    found = f"{level or 'not in this kernel'}{f'; {closed}' if closed else ''}"
    remedy = (
        "boot with lockdown=confidentiality (and lockdown among lsm=), or sysctl -w kernel.modules_disabled=1"
    )
    return Finding("lockdown", State.WEAK, found, keeps, remedy)


def _instruments() -> Finding:
    keeps = "root: BPF programs and uprobes that copy memory of a running process"
    if assess()[Vector.TRACE].open:
        built = "built in" if config("BPF_EVENTS") else "nobody tells whether they are built in"
        return Finding("no instruments", State.WEAK, built, keeps, "a kernel without CONFIG_BPF_EVENTS")
    return Finding("no instruments", State.GOOD, "not in this kernel", keeps)


def _swap() -> Finding:
    keeps = "prompts, answers and keys on a disk: Flex-Mem is never swapped, the process's heap may be"
    try:
        lines = Path("/proc/swaps").read_text().splitlines()[1:]
    except OSError:
        return Finding("swap", State.WEAK, "nobody tells", keeps, "cat /proc/swaps as root")
    disks = [line.split()[0] for line in lines if "zram" not in line.split()[0]]
    if not disks:
        return Finding("swap", State.GOOD, "none on a disk", keeps)
    return Finding("swap", State.WEAK, ", ".join(disks), keeps, "swapoff -a, or swap on an encrypted device")


def _cgroup() -> Finding:
    keeps = "models larger than what this process's cgroup may use: they are refused or run slowly"
    look = LinuxNormalMemory().sample()
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = f"{format_size(look.total)} of the machine's {format_size(ram)}"
    if look.total < ram // 2:
        remedy = "MemoryMax= in systemd, --memory of the container, memory.max"
        return Finding("cgroup", State.WEAK, found, keeps, remedy)
    return Finding("cgroup", State.GOOD, found, keeps)


def _cpu() -> Finding:
    keeps = "slow answers (vector arithmetic) and slow restores (AES)"
    wanted = _FAST.get(platform.machine(), ())
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((set(line.split()) for line in lines if line.startswith(("flags", "Features"))), set())
    lacking = [flag for flag in wanted if flag not in flags]
    if lacking or not wanted:
        return Finding("CPU", State.WEAK, f"without {', '.join(lacking) or 'known features'}", keeps)
    return Finding("CPU", State.GOOD, ", ".join(wanted), keeps)


def _seccomp() -> Finding:
    keeps = "a compromised engine: programs, processes, connections, debugging, new code"
    if seccomp.available():
        return Finding("seccomp", State.GOOD, "this kernel has it", keeps)
    remedy = "a kernel with CONFIG_SECCOMP_FILTER, on x86-64 or aarch64"
    return Finding("seccomp", State.WEAK, "not to be had", keeps, remedy)


def _landlock() -> Finding:
    keeps = "a compromised engine: every file but the store, the device's key among them"
    version = landlock.version()
    if version:
        return Finding("Landlock", State.GOOD, f"version {version}", keeps)
    return Finding("Landlock", State.WEAK, "not in this kernel", keeps, "boot with landlock among lsm=")


def _namespaces() -> Finding:
    keeps = "a compromised engine: the network, other file systems; a template: other processes"
    program = (
        "from flexserve.platforms.linux.sandbox import isolate, leave_processes; "
        "print(isolate() or leave_processes())"
    )
    ended = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    why = ended.stdout.strip() if ended.returncode == 0 else "they could not be tried"
    if not why:
        return Finding("namespaces", State.GOOD, "users, mounts, network, IPC, processes: as wanted", keeps)
    remedy = "sysctl -w user.max_user_namespaces=10000; allow unshare in the container or AppArmor profile"
    return Finding("namespaces", State.WEAK, why, keeps, remedy)


_LOOKS: tuple[Callable[[], Finding], ...] = (
    _memfd_secret,
    _locked_memory,
    _yama,
    _lockdown,
    _instruments,
    _swap,
    _cgroup,
    _cpu,
    _seccomp,
    _landlock,
    _namespaces,
)
