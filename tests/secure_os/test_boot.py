"""The secure OS on an emulated CPU, without Linux: secure-os/tests/boot/shim.S plays EL3, lends two cores."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flexserve.emulator import tools

ROOT = Path(__file__).resolve().parents[2]
SECURE_OS, ABI = ROOT / "secure-os", ROOT / "abi"
PROGRAMS = SECURE_OS / "tests" / "boot"
CROSS = "aarch64-linux-gnu-"
IMAGE, SEED, APPLICATION, FLASH_BYTES = 0x0040_0000, 0x0040_0018, 0x0080_0000, 0x0200_0000
MACHINE = ["-machine", "virt,secure=on,gic-version=3,highmem=off", "-cpu", "cortex-a76"]
SIZE = ["-smp", "2", "-m", "256M"]
QUIET = ["-nodefaults", "-display", "none", "-monitor", "none", "-serial", "stdio", "-semihosting"]
FAULTED = 128 + 2  # ENDING_FAULT, as shim.S has it
SECONDS = 120

needs_tools = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("make", f"{CROSS}gcc", "qemu-system-aarch64")),
    reason="apt-get install make gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-system-arm",
)
pytestmark = needs_tools

Boot = Callable[[Path], "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def boot(tmp_path_factory: pytest.TempPathFactory) -> Boot:
    """Build the secure OS once; return what starts it with an application and waits for its end."""
    folder = tmp_path_factory.mktemp("secure-os")
    for name in ("abi", "monitor", "secure-os"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("build"))
    source = folder / "secure-os"
    tools.run("make", "-C", source, "image", f"CROSS_COMPILE={CROSS}")
    include = ("-I", source, "-I", folder / "monitor", "-I", folder / "abi")
    tools.run(
        *(f"{CROSS}gcc", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none,-Ttext=0,-e,0", *include),
        *(source / "tests/boot/shim.S", "-o", folder / "shim.elf"),
    )
    tools.run(f"{CROSS}objcopy", "-O", "binary", "-j", ".text", folder / "shim.elf", folder / "shim.bin")
    parts = {0: (folder / "shim.bin").read_bytes(), IMAGE: (source / "build/secure_os.bin").read_bytes()}

    def start(application: Path) -> subprocess.CompletedProcess[str]:
        flash = bytearray(FLASH_BYTES)
        for at, part in (parts | {APPLICATION: application.read_bytes()}).items():
            flash[at : at + len(part)] = part
        flash[SEED : SEED + 32] = secrets.token_bytes(32)
        image = application.with_suffix(".flash")
        image.write_bytes(flash)
        return subprocess.run(
            ["qemu-system-aarch64", *MACHINE, *SIZE, *QUIET, "-bios", str(image)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )

    return start


def compiled(name: str, folder: Path) -> Path:
    """Compile a program of secure-os/tests/boot; skip when there is no compiler for it."""
    compiler = f"{CROSS}g++" if name.endswith(".cpp") else f"{CROSS}gcc"
    if shutil.which(compiler) is None:
        pytest.skip("apt-get install g++-aarch64-linux-gnu")
    program = folder / Path(name).stem
    tools.run(compiler, "-O1", "-static", "-pthread", "-I", ABI, PROGRAMS / name, "-o", program)
    return program


@pytest.mark.parametrize("name", ["threads.c", "memory.c", "library.cpp"])
def test_a_program_of_the_c_or_cpp_library_runs_at_s_el0(name, boot, tmp_path):
    ended = boot(compiled(name, tmp_path))
    assert f"{Path(name).stem}: well" in ended.stdout, ended.stdout + ended.stderr
    assert ended.returncode == 0


def test_a_program_that_reads_the_kernels_memory_is_ended(boot, tmp_path):
    ended = boot(compiled("fault.c", tmp_path))
    assert "the application faulted" in ended.stdout
    assert ended.returncode == FAULTED


def test_a_file_that_is_no_program_is_not_started(boot, tmp_path):
    program = compiled("fault.c", tmp_path)
    program.write_bytes(program.read_bytes()[:18] + b"\x3e" + program.read_bytes()[19:])  # of another CPU
    ended = boot(program)
    assert "faulted" not in ended.stdout
    assert ended.returncode == 128 + 4  # ENDING_BAD
