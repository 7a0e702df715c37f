#!/usr/bin/env python3
"""Prove what tests/proofs says of the core, by CBMC.

prove.py OUT [NAME...]    OUT: a folder to build in; NAMES: these proofs only

Each proof is a harness, the core's sources, and sizes: the real constants where nothing loops over pages,
small ones where something does. Every property is checked, with it that no pointer leads astray, no number
overflows where C does not say what happens, and that no loop goes round more often than it was followed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cbmc import Cbmc, NoCbmcError, find
from variant import ABI, MONITOR, SMALL, Replacement, make

PROOFS = MONITOR / "tests" / "proofs"
PARTS = tuple(sorted(PROOFS.glob("*_part.c")))
CHECKS = (
    "--pointer-check",
    "--bounds-check",
    "--signed-overflow-check",
    "--div-by-zero-check",
    "--undefined-shift-check",
)

#: As SMALL, and calls name few pages, the NPU has few registers, and the mailbox has fewer gaps.
BOUNDED = (
    *SMALL,
    Replacement("flex.h", "FLEX_CALL_PAGES_MAX 512", "FLEX_CALL_PAGES_MAX SMALL_CALL"),
    Replacement("flex.h", "FLEX_MAILBOX_HEADER_BYTES 4096", "FLEX_MAILBOX_HEADER_BYTES 512"),
    Replacement("flex.h", "FLEX_NPU_WINDOW_BYTES 0x10000", "FLEX_NPU_WINDOW_BYTES 0x2000"),
)
SIZES = (
    "-DFLEX_MAILBOX_SLOTS=2",
    "-DSMALL_PAGES=8",
    "-DSMALL_CALL=4",
    "-DSMALL_NOTICES=2",
    "-DSMALL_STEPS=1",
    "-DSMALL_TURNS=2",
)


@dataclass(frozen=True, slots=True)
class Proof:
    """A harness; of what it is made, and how far loops are followed."""

    name: str
    source: str
    core: tuple[str, ...] = ("calls", "layout", "selftest")
    helpers: tuple[Path, ...] = (*PARTS, PROOFS / "machine.c", PROOFS / "device.c")
    defines: tuple[str, ...] = (*SIZES, "-DPAGES=8")
    unwind: int = 9
    loops: str = "zero_registers.0:1024,mailbox_npu_driver.0:33"  # that go round more often
    instrument: tuple[str, ...] = ("--nondet-volatile",)
    options: tuple[str, ...] = ("--max-field-sensitivity-array-size", "1024")
    bounds: tuple[Replacement, ...] = BOUNDED
    tree: Path = MONITOR  # whose core it is


def calls() -> dict[str, str]:
    """Return the calls that the core serves, in the order of their numbers, and the function of each."""
    return dict(re.findall(r"\[FLEX_CALL_(\w+)\] = (\w+)", (MONITOR / "core/calls.c").read_text()))


REAL = {
    "helpers": (),
    "defines": ("-DPAGES=1", "-DSMALL_NOTICES=1"),
    "instrument": (),
    "loops": "",
    "options": (),
    "bounds": (),
}
ALL = (
    Proof("range", "prove_range.c", core=(), **REAL),
    Proof("layout", "prove_layout.c", core=("layout",), **REAL),
    Proof("redistributor", "prove_redistributor.c", core=("redistributor",), **REAL),
    *(
        Proof(
            name,
            "prove_start.c",
            helpers=PARTS,
            defines=(*SIZES, "-DPAGES=512", f"-DNPUS={npus}"),
            unwind=4100,
            loops="",
            instrument=("--nondet-volatile", "--nondet-static"),
            options=("--max-field-sensitivity-array-size", "4096"),
        )
        for npus, name in ((1, "start"), (0, "start, no NPU"))
    ),
    *(
        Proof(
            f"call {name}",
            "prove_call.c",
            defines=(*SIZES, "-DPAGES=8", f"-DCALL=FLEX_SMC_BASE+FLEX_CALL_{name}"),
        )
        for name in calls()
    ),
    Proof(
        "other numbers",
        "prove_other.c",
        defines=(*SIZES, "-DPAGES=8", f"-DCALLS={len(calls())}"),
        # Called without a body, they are a failure; with theirs, CBMC would follow them all, to no end.
        instrument=(
            "--nondet-volatile",
            *(word for name in calls().values() for word in ("--remove-function-body", name)),
        ),
    ),
    Proof("step", "prove_step.c"),
    Proof("fault", "prove_fault.c"),
    Proof("end", "prove_end.c"),
)


class ProofError(Exception):
    """A tool failed: neither proved nor refuted."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether everything was proved, or else what was not; what CBMC printed; seconds of CPU time."""

    failed: tuple[str, ...]
    printed: str
    seconds: float


def ask(
    cbmc: Cbmc, proof: Proof, out: Path, faults: tuple[Replacement, ...] = (), cover: bool = False
) -> Answer:
    """Try a proof of the core, with faults if any; `cover`: instead, look for what must be possible."""
    folder = out / proof.name.replace(" ", "-")
    make(folder, (*proof.bounds, *faults), proof.tree)
    harness = proof.tree / "tests" / "proofs" / proof.source
    sources = [harness, *proof.helpers, *(folder / f"core/{name}.c" for name in proof.core)]
    found = [folder, proof.tree, MONITOR, ABI.parent, proof.tree / "core"]  # the last: for ../../monitor
    program = folder / "program"
    defines = (*proof.defines, *(("-DCOVER",) if cover else ()))
    run(cbmc.command("goto-cc", *defines, *(f"-I{each}" for each in found), *sources, "-o", program))
    # Checked first: a read of volatile memory that became "anything" could no longer be.
    run(cbmc.command("goto-instrument", *CHECKS, program, program))
    if proof.instrument:
        run(cbmc.command("goto-instrument", *proof.instrument, program, program))
    goal = ("--cover", "cover") if cover else ("--unwinding-assertions", "--slice-formula")
    words = (
        "--no-standard-checks",
        "--drop-unused-functions",
        "--unwind",
        str(proof.unwind),
        *goal,
        *(("--unwindset", proof.loops) if proof.loops else ()),
    )
    printed, seconds = run(cbmc.command("cbmc", *words, *proof.options, program), fine=(0, 10))
    lost = re.findall(r"^\[.*\] (.*): (?:FAILURE|FAILED|UNKNOWN|ERROR)$", printed, re.MULTILINE)
    if not lost and not re.search(
        r"^(VERIFICATION SUCCESSFUL$|\*\* \d+ of \d+ covered)", printed, re.MULTILINE
    ):
        raise ProofError(printed[-3000:])
    return Answer(tuple(lost), printed, seconds)


def run(command: list[str], fine: tuple[int, ...] = (0,)) -> tuple[str, float]:
    """Run a program; return what it printed, and the seconds of CPU time that it took."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        printed = process.stdout.read() if process.stdout else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in fine:
        raise ProofError(f"{' '.join(command)}\n{printed[-3000:]}")
    return printed, usage.ru_utime + usage.ru_stime


def main(out: Path, names: list[str], known: tuple[Proof, ...] = ALL) -> int:
    """Try the proofs of `known` that have these names, or all; return 1 when one of them fails."""
    cbmc = find()
    proofs = [proof for proof in known if not names or proof.name in names]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        answers = pool.map(lambda proof: ask(cbmc, proof, out), proofs)
        failed = 0
        for proof, answer in zip(proofs, answers, strict=True):
            properties = re.search(r"\*\* \d+ of (\d+) failed", answer.printed)
            said = f"{properties[1]} properties" if properties and not answer.failed else "NOT PROVED"
            sys.stdout.write(f"  {proof.name:16} {said:18} {answer.seconds:5.1f} s\n")
            sys.stdout.writelines(f"    fails: {law}\n" for law in answer.failed)
            sys.stdout.flush()
            failed += bool(answer.failed)
    sys.stdout.write(f"{len(proofs) - failed} of {len(proofs)} proofs hold\n")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
    except (NoCbmcError, ProofError) as error:
        sys.exit(f"nothing was proved: {error}")
