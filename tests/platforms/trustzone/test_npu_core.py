"""The NPU driver's core as it is built: bytes that run anywhere, and that nobody changes on loading.

Both worlds run them. The secure world compares their digest with that of what was built here, and the
monitor's sandbox has nothing but them, a page of stack and the NPU's registers.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from flexserve.emulator.build import Images, NoSourcesError, build
from flexserve.emulator.packages import NoPackageError
from flexserve.emulator.tools import MissingToolError
from flexserve.folders import cache_folder
from flexserve.units import MIB

pytestmark = pytest.mark.vm

SECTION = ".npu_core"


@pytest.fixture(scope="module")
def images() -> Images:
    try:
        return build(cache_folder() / "trustzone", ram_bytes=256 * MIB, cpus=1, progress=lambda _: None)
    except (MissingToolError, NoPackageError, NoSourcesError) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def module(images: Images) -> Path:
    return images.npu_core.with_name("flexnpu.ko")


def said(program: str, *words: str | Path) -> str:
    command = [f"aarch64-linux-gnu-{program}", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def header(module: Path) -> list[str]:
    """What readelf says of the section: name, type, address, offset, bytes, …, alignment."""
    (line,) = [line for line in said("readelf", "-SW", module).splitlines() if f" {SECTION} " in line]
    return line.partition("]")[2].split()


def test_the_file_has_the_sections_bytes_as_they_stand_in_the_module(images: Images, module: Path) -> None:
    fields = header(module)
    offset, size = int(fields[3], 16), int(fields[4], 16)
    assert images.npu_core.read_bytes() == module.read_bytes()[offset : offset + size]


def test_it_fits_a_page_and_begins_with_one(module: Path) -> None:
    fields = header(module)
    assert 0 < int(fields[4], 16) <= 4096
    assert int(fields[-1]) == 4096
    assert fields[6] == "AX", "in memory, executable, not writable"


def test_the_loader_has_nothing_to_change_in_it(module: Path) -> None:
    """No relocations of its own, and no table that has code patched (alternatives, tracing, …) names it."""
    parts = re.split(r"^Relocation section '(\S+)'", said("readelf", "-rW", module), flags=re.M)[1:]
    naming = {name for name, text in zip(parts[::2], parts[1::2], strict=True) if "npu_core" in text}
    assert naming <= {".rela.text"}, "calls of it, and its ends"


def test_it_is_one_function_that_begins_and_ends_the_section(module: Path) -> None:
    lines = [line.split() for line in said("objdump", "-t", module).splitlines() if f" {SECTION}\t" in line]
    symbols = {words[-1]: int(words[0], 16) for words in lines if words[-1][0] not in "$."}
    assert symbols == {"flex_npu_core": 0, "flex_npu_core_end": int(header(module)[4], 16)}


def test_it_calls_nobody_keeps_nothing_and_jumps_only_within_itself(module: Path) -> None:
    code = said("objdump", "-d", "--no-show-raw-insn", "-j", SECTION, module)
    lines = re.findall(r"^\s+[0-9a-f]+:\s+(\S+)(.*)$", code, re.M)
    kinds = {kind for kind, _ in lines}
    assert len(lines) > 20
    assert not kinds & {"bl", "blr", "br", "adr", "adrp", "svc", "hvc", "smc", "mrs", "msr", ".word"}
    jumps = [rest for kind, rest in lines if kind[:2] in ("b", "b.", "cb", "tb")]
    others = [rest for kind, rest in lines if kind[:2] not in ("b", "b.", "cb", "tb")]
    assert {re.search(r"<(\w+)", rest)[1] for rest in jumps} == {"flex_npu_core"}  # type: ignore[index]
    assert not [rest for rest in others if re.search(r"\b[bhsdqv]\d+\b", rest)], "no floating point"
