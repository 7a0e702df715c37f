"""What takes minutes to prove was proved of these very sources, and by turns is proved again."""

from __future__ import annotations

import datetime
import functools
import re
import shutil
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import mutants
import prove
import pytest
import record
import secure_os_proofs
from record import SUITES, Suite

ROOT = Path(__file__).resolve().parents[2]
MONITOR = ROOT / "monitor"

each_suite = pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)


@functools.cache
def why_not() -> str:
    """Why there is no CBMC here, and what to do; empty when there is."""
    if shutil.which("gcc") is None:
        return "no gcc: apt-get install gcc"
    found = subprocess.run(
        [sys.executable, MONITOR / "tests/cbmc.py"], capture_output=True, text=True, check=False
    )
    return found.stderr.strip() if found.returncode else ""


@functools.cache
def found(name: str) -> list[str]:
    """Return what a suite finds of these sources, as it is recorded; of others, run it."""
    (suite,) = (suite for suite in SUITES if suite.name == name)
    if record.stands(suite):
        entry = record.read()[name]
    else:
        warnings.warn(
            f"The proofs of these sources are not recorded: {name} runs in full. `make proofs` records them.",
            stacklevel=1,
        )
        try:
            entry = record.run(suite)
        except (record.NotHeldError, record.NoCbmcError) as error:
            pytest.fail(
                f"The proofs of these sources have not been run: `make proofs`. {error}", pytrace=False
            )
    listed = entry["found"]
    assert isinstance(listed, list)
    return listed


@pytest.mark.timeout(3600)
def test_the_laws_are_proved_for_every_call_from_any_state() -> None:
    abi = tomllib.loads((ROOT / "abi" / "flex.toml").read_text())
    expected = {"range", "layout", "redistributor", "start", "start, no NPU", "step", "fault", "end"}
    expected |= {"other numbers"} | {f"call {call['name']}" for call in abi["call"]}
    assert set(found("prove")) == expected


@pytest.mark.timeout(3600)
def test_the_laws_hold_in_every_state_of_small_machines() -> None:
    states = [int(re.findall(r"(\d+) states", line)[0]) for line in found("exhaustive")]
    assert len(states) == 4
    assert min(states) > 10_000, "so few: a machine did not get far"


@pytest.mark.timeout(3600)
def test_each_fault_put_into_the_core_is_noticed() -> None:
    assert found("mutants") == [f"{len(mutants.MUTANTS)} of {len(mutants.MUTANTS)}"]


@pytest.mark.timeout(3600)
def test_the_laws_of_the_secure_os_are_proved_for_any_arguments_in_any_state() -> None:
    assert set(found("secure_os_prove")) == {proof.name for proof in secure_os_proofs.ALL}
    about = {path.stem.removeprefix("prove_") for path in (ROOT / "secure-os/tests/proofs").glob("prove_*.c")}
    assert {"pages", "tables", "areas", "user", "flexmem", "mailbox", "calls"} <= about
    assert {name.split()[0] for name in found("secure_os_prove")} == about


def test_a_fault_is_known_that_each_proof_of_the_secure_os_must_notice() -> None:
    """`make -C secure-os refute` tries them, in minutes."""
    noticed = {doubt.proof.name for doubt in secure_os_proofs.doubts() if doubt.fault is not None}
    assert {name.split()[0] for name in noticed} == {proof.name.split()[0] for proof in secure_os_proofs.ALL}


@pytest.mark.proof
@pytest.mark.timeout(1200)
def test_the_proof_whose_turn_it_is_today_holds(tmp_path: Path) -> None:
    if why_not():
        pytest.skip(why_not())
    known = (*prove.ALL, *secure_os_proofs.ALL)
    proof = known[datetime.datetime.now(datetime.UTC).toordinal() % len(known)]
    answer = prove.ask(prove.find(), proof, tmp_path)
    assert answer.failed == (), f"{proof.name} does not hold: make -C {proof.tree.name} run-prove"


@pytest.fixture
def copied(tmp_path: Path, suite: Suite) -> Path:
    """A copy of all that the suite reads."""
    for path in record.inputs(suite, ROOT):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tmp_path


@each_suite
def test_a_change_of_any_input_and_of_its_name_and_of_the_tool_is_noticed(suite: Suite, copied: Path) -> None:
    before = record.digest(suite, "a tool", copied)
    assert before == record.digest(suite, "a tool", ROOT)
    assert before != record.digest(suite, "another tool", copied)
    for path in record.inputs(suite, copied):
        held = path.read_bytes()
        path.write_bytes(held + b"\n")
        assert record.digest(suite, "a tool", copied) != before, path
        path.unlink()
        assert record.digest(suite, "a tool", copied) != before, path
        path.write_bytes(held)
    assert record.digest(suite, "a tool", copied) == before


@each_suite
def test_what_is_compiled_and_included_is_among_the_inputs(suite: Suite) -> None:
    """Whatever folder an include is looked for in, a file of the repository by that path has to be known."""
    known = {str(path.relative_to(ROOT)) for path in record.inputs(suite, ROOT)}
    included = {
        name
        for path in map(ROOT.joinpath, sorted(known))
        if path.suffix in (".c", ".h")
        for name in re.findall(r'^#include "(?:\.\./\.\./monitor/)?([^"]+)"', path.read_text(), re.MULTILINE)
    }
    assert len(included) > 10
    if suite.target in {"exhaustive", "mutants"}:
        world = re.search(r"^WORLD := (.*)$", (MONITOR / "tests/host.mk").read_text(), re.MULTILINE)
        assert world is not None
        included |= set(world[1].split())
    folders = ("abi", "monitor", *({suite.folder} - {"monitor"}))
    assert [name for name in sorted(included) if not {f"{each}/{name}" for each in folders} & known] == []
