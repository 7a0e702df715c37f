"""The filters of system calls: their numbers are the kernel's, and aarch64's do there what they are to do."""

from __future__ import annotations

import errno
import platform
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from flexserve.emulator import packages
from flexserve.emulator.cpio import Archive
from flexserve.emulator.tools import MissingToolError, require
from flexserve.folders import cache_folder
from flexserve.platforms.linux import seccomp

COMPILERS = {"x86_64": "x86_64-linux-gnu-gcc", "aarch64": "aarch64-linux-gnu-gcc"}
FILTERS = {"serving": seccomp.serving, "holding": seccomp.holding, "rendering": seccomp.rendering}


def compiler_for(machine: str) -> str:
    own = machine == platform.machine()
    found = shutil.which("cc" if own else COMPILERS[machine])
    if found is None:
        pytest.skip(f"{COMPILERS[machine]} is not installed")
    return found


def numbers_of_headers(machine: str, names: list[str]) -> dict[str, int]:
    """Return the numbers that the kernel's headers, as the compiler finds them, give to those of `names`."""
    lines = [f'#ifdef __NR_{name}\nCALL "{name}" __NR_{name}\n#endif' for name in names]
    source = "#include <asm/unistd.h>\n" + "\n".join(lines)
    command = [compiler_for(machine), "-E", "-P", "-x", "c", "-"]
    ended = subprocess.run(command, input=source, capture_output=True, text=True, check=True)
    found = [line.split() for line in ended.stdout.splitlines() if line.startswith("CALL")]
    return {name.strip('"'): int(number) for _, name, number in found}


@pytest.mark.parametrize("machine", seccomp.SECCOMP)
def test_every_call_has_the_number_that_the_kernels_headers_give_it(machine: str):
    column = list(seccomp.SECCOMP).index(machine)
    ours = {name: pair[column] for name, pair in seccomp.CALLS.items()}
    theirs = numbers_of_headers(machine, [*ours, "seccomp"])
    assert theirs.pop("seccomp") == seccomp.SECCOMP[machine]
    assert theirs == {name: number for name, number in ours.items() if number is not None}


EPERM, ENOENT = str(errno.EPERM), str(errno.ENOENT)
KILLED = f"killed {signal.SIGSYS:d}"
# What comes of each try without a filter, and under those of SERVING, HOLDING and RENDERING.
WANTED = {
    "ask_pid": ("0", "0", "0", "0"),
    "open_file": ("0", "0", EPERM, EPERM),
    "make_memory": ("0", "0", EPERM, "0"),
    "map_memory": ("0", "0", "0", "0"),
    "map_code": ("0", EPERM, EPERM, EPERM),
    "make_code": ("0", EPERM, EPERM, EPERM),
    "grow_memory": ("0", "0", "0", "0"),
    "move_memory": ("0", "0", EPERM, EPERM),
    "move_and_leave_a_hole": ("0", EPERM, EPERM, EPERM),
    "thread": ("0", "0", "0", "0"),
    "process": ("0", KILLED, KILLED, "0"),
    "lower_itself": ("0", "0", "0", "0"),
    "lower_another": ("0", EPERM, EPERM, EPERM),
    "lower_its_user": ("0", EPERM, EPERM, EPERM),
    "ask_own_limit": ("0", "0", "0", "0"),
    "ask_anothers_limit": ("0", EPERM, EPERM, EPERM),
    "signal_another": ("0", EPERM, EPERM, "0"),
    "run_program": (ENOENT, KILLED, KILLED, KILLED),
    "open_socket": ("0", KILLED, KILLED, KILLED),
    "debug": ("0", KILLED, KILLED, KILLED),
    "change_user": ("0", EPERM, EPERM, EPERM),
}


def booted_with(folder: Path) -> str:
    """Return the console of an aarch64 machine with Debian's kernel, whose only program makes the tries."""
    try:
        require("qemu-system-aarch64", COMPILERS["aarch64"])
        kernel = packages.kernel(cache_folder() / "trustzone", lambda _what: None)
    except (MissingToolError, packages.NoPackageError) as error:
        pytest.skip(str(error))
    program = folder / "init"
    source = Path(__file__).with_name("seccomp_guest.c")
    command = [
        COMPILERS["aarch64"],
        "-static",
        "-pthread",
        "-O1",
        "-Wall",
        "-Werror",
        str(source),
        "-o",
        str(program),
    ]
    subprocess.run(command, check=True)
    archive = Archive()
    archive.folder("dev")
    archive.character_device("dev/console", 5, 1)
    archive.file("init", program.read_bytes(), executable=True)
    for name, make in FILTERS.items():
        archive.file(name, make("aarch64"))
    initrd = folder / "initrd"
    initrd.write_bytes(archive.closed())
    machine = [
        "-machine",
        "virt",
        "-cpu",
        "cortex-a72",
        "-m",
        "256",
        "-nographic",
        "-no-reboot",
        "-nic",
        "none",
    ]
    boot = ["-kernel", str(kernel.image), "-initrd", str(initrd), "-append", "console=ttyAMA0 quiet panic=-1"]
    ended = subprocess.run(
        ["qemu-system-aarch64", *machine, *boot], capture_output=True, text=True, timeout=240, check=False
    )
    return ended.stdout


def test_on_aarch64_each_filter_lets_through_what_it_is_to_and_nothing_else(tmp_path: Path):
    lines = [
        line.split(maxsplit=3) for line in booted_with(tmp_path).splitlines() if line.startswith("TRIED")
    ]
    came = {(which, name): what.strip() for _, which, name, what in lines}
    filters = ("none", *FILTERS)
    assert came == {
        (which, name): what for name, row in WANTED.items() for which, what in zip(filters, row, strict=True)
    }
