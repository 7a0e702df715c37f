"""The firmware beside its interface: answers to standard calls, and EL2's map of memory."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare import BASE, CALL, HIDDEN, RAM, Bare, bare

import flexserve
from flexserve.platforms.trustzone import layout
from flexserve.platforms.trustzone.abi import Call, Status

SMCCC_VERSION, SMCCC_ARCH_FEATURES, WORKAROUND_1 = 0x8000_0000, 0x8000_0001, 0x8000_8000
PSCI_VERSION, PSCI_FEATURES, PSCI_SYSTEM_RESET2 = 0x8400_0000, 0x8400_000A, 0x8400_0012
PSCI_AFFINITY_INFO = 0xC400_0004
NOT_SUPPORTED, INVALID_PARAMETERS = 2**64 - 1, 2**64 - 2
LEVEL1 = HIDDEN + 0xF6000  # of EL2's map
IMAGE = 0x1_0000_0000  # what it is linked for
TABLE, PAGE_BITS, ADDRESS = 3, 12, 0x0000_FFFF_FFFF_F000
READ_ONLY, NEVER_RUN = 1 << 7, 1 << 54


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    with bare(tmp_path_factory.mktemp("bare")) as it:
        yield it


@pytest.fixture(params=["protected", "not protected"])
def it(machine: Bare, request: pytest.FixtureRequest) -> Bare:
    """The machine; EL2 answers standard calls, or EL3 alone."""
    call = Call.VERSION if request.param == "protected" else Call.RELAX
    assert machine.call(call)[0] == Status.OK
    return machine


def test_the_calling_convention_is_one_that_linux_can_ask_for_workarounds(it: Bare) -> None:
    assert it.wish(CALL, PSCI_VERSION)[0] == 0x1_0000
    assert it.wish(CALL, PSCI_FEATURES, SMCCC_VERSION)[0] == 0
    assert it.wish(CALL, SMCCC_VERSION)[0] == 0x1_0001
    assert it.wish(CALL, SMCCC_ARCH_FEATURES, SMCCC_VERSION)[0] == 0
    assert it.wish(CALL, SMCCC_ARCH_FEATURES, SMCCC_ARCH_FEATURES)[0] == 0
    assert it.wish(CALL, SMCCC_ARCH_FEATURES, WORKAROUND_1)[0] == NOT_SUPPORTED


@pytest.mark.parametrize("function", [0x8000_0002, 0xC000_0000, WORKAROUND_1, 0x8400_0050, 0xBF00_FF01])
def test_what_there_is_not_is_not_supported(it: Bare, function: int) -> None:
    assert it.wish(CALL, function)[0] == NOT_SUPPORTED


def test_a_call_leaves_all_registers_but_its_results(it: Bare) -> None:
    given = tuple(range(101, 108))
    assert it.wish(CALL, SMCCC_VERSION, *given)[4:7] == given[3:6]


@pytest.mark.parametrize("target", [1, 0x100, 0x1_0000, 1 << 24, 1 << 32, 1 << 40])
def test_no_other_affinity_is_that_of_the_first_cpu(it: Bare, target: int) -> None:
    assert it.wish(CALL, PSCI_AFFINITY_INFO, 0)[0] == 0
    assert it.wish(CALL, PSCI_AFFINITY_INFO, target)[0] == INVALID_PARAMETERS


# ---- EL2's map --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """`bytes` from a virtual address on, which are at a physical one, and what EL2 may do there."""

    virtual: int
    physical: int
    bytes: int
    written: bool
    run: bool

    def has(self, physical: int) -> bool:
        return self.physical <= physical < self.physical + self.bytes


def leaves(machine: Bare, table: int = LEVEL1, level: int = 1, virtual: int = 0) -> Iterator[Leaf]:
    """Walk the table as the MMU does."""
    size = 1 << PAGE_BITS + 9 * (3 - level)
    for index in range(512):
        at = table - BASE + index * 8
        word = int.from_bytes(machine.memory[at : at + 8], "little")
        here = virtual + index * size
        if word & TABLE == TABLE and level < 3:
            yield from leaves(machine, word & ADDRESS, level + 1, here)
        elif word & 1:
            yield Leaf(here, word & ADDRESS, size, not word & READ_ONLY, not word & NEVER_RUN)


def sections() -> dict[str, tuple[int, bytes]]:
    """Return where EL2's sections begin, and what is in those of them that do not change."""
    image = Path(flexserve.__file__).parents[2] / "monitor/build/fw"
    words = ("aarch64-linux-gnu-nm", image / "el2.elf")
    lines = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    at = {name: int(value, 16) - IMAGE for value, _, name in map(str.split, lines)}
    code = (image / "el2.bin").read_bytes()
    constants, variables = at["el2_constants"], at["el2_variables"]
    return {
        "code": (0, code[:constants]),
        "constants": (constants, code[constants:variables]),
        "variables": (variables, b""),
    }


def test_el2_runs_its_code_and_nothing_that_can_be_written(machine: Bare) -> None:
    assert machine.call(Call.VERSION)[0] == Status.OK
    mapped = list(leaves(machine))
    code, constants, variables = (HIDDEN + begin for begin, _ in sections().values())
    assert {leaf.virtual - leaf.physical for leaf in mapped} == {0, IMAGE - HIDDEN}
    assert not [leaf for leaf in mapped if leaf.written and leaf.run]
    for leaf in mapped:
        assert leaf.run == (code <= leaf.physical < constants), hex(leaf.virtual)
        fixed = code < leaf.physical + leaf.bytes and leaf.physical < variables
        assert leaf.written == (not fixed), hex(leaf.virtual)


@pytest.mark.parametrize(
    "offset", [layout.mailbox_offset(RAM), layout.npu_window_offset(RAM), layout.npu_control_offset(RAM)]
)
def test_what_others_can_write_is_run_under_none_of_its_addresses(machine: Bare, offset: int) -> None:
    assert machine.call(Call.VERSION)[0] == Status.OK
    found = [leaf for leaf in leaves(machine) if leaf.has(BASE + offset)]
    assert found
    assert not [leaf for leaf in found if leaf.run]


def test_code_and_constants_lie_where_the_map_says(machine: Bare) -> None:
    assert machine.call(Call.VERSION)[0] == Status.OK
    for begin, content in sections().values():
        assert begin % 4096 == 0
        assert machine.memory[HIDDEN - BASE + begin : HIDDEN - BASE + begin + len(content)] == content
