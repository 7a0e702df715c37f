#!/usr/bin/env python3
"""See that each proof can fail.

refute.py OUT    OUT: a folder to build in

Faults of mutants.py and some of its own are put into the core, one at a time, and the proof named with each
must fail. And what a proof speaks of must be possible: one whose assumptions contradict each other would
prove anything.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from cbmc import Cbmc, NoCbmcError, find
from mutants import MUTANTS, Mutant
from prove import ALL, Proof, ProofError, ask
from variant import Replacement

LAYOUT, NPU, PAGES, REDISTRIBUTOR, SECURE, TABLES = (
    f"core/{name}.c" for name in ("layout", "npu", "pages", "redistributor", "secure", "tables")
)
BETWEEN = "\tfor (; at < end; at++)\n\t\tif (*at != from && *at != to)\n\t\t\treturn false;\n"
OWN = (
    Mutant(
        "the end of a range may wrap",
        PAGES,
        "pages > (end - ipa) / FLEX_PAGE_BYTES",
        "ipa + pages * FLEX_PAGE_BYTES > end",
    ),
    Mutant("a range may be too long", PAGES, " || pages > FLEX_CALL_PAGES_MAX", ""),
    Mutant(
        "hidden memory is not at the end",
        LAYOUT,
        "board->ram_bytes - FLEX_HIDDEN_BYTES",
        "board->ram_bytes / 2",
    ),
    Mutant(
        "tables upon the page states",
        LAYOUT,
        "at = layout->states + pages_up(layout->pages)",
        "at = layout->states",
    ),
    Mutant(
        "too few tables", LAYOUT, "tree->level3 + blocks * FLEX_PAGE_BYTES", "tree->level3 + FLEX_PAGE_BYTES"
    ),
    Mutant("LPIs are told of", REDISTRIBUTOR, "(3ULL << 24 | 0xefULL)", "(3ULL << 24)"),
    Mutant("LPIs are seen to be on", REDISTRIBUTOR, "(1U << 31 | 1U << 3)", "(1U << 31 | 1U)"),
    Mutant("all of the frame is seen", REDISTRIBUTOR, "offset >= IDENTITY && ", ""),
    Mutant("RAM over the registers", LAYOUT, " && board->ram_base != 0 &&", " &&"),
    Mutant("a sweep looks beyond RAM", PAGES, "left < FLEX_CALL_PAGES_MAX ? left : ", ""),
    Mutant(
        "a sweep leaves out a page", SECURE, "leaving.next += some.count", "leaving.next += some.count + 1"
    ),
    # The exhaustive tests have two pages, with none between them.
    Mutant("RETURN passes over anything", PAGES, BETWEEN, ""),
    Mutant(
        "RETURN passes over what is recalled",
        PAGES,
        "from && *at != to",
        "from && *at != to && *at != FLEX_STATE_RECALLING",
    ),
    Mutant(
        "the monitor's own pages move",
        PAGES,
        "if (*at != from)\n\t\t\treturn",
        "if (*at != FLEX_STATE_MONITOR && *at != from)\n\t\t\treturn",
    ),
    Mutant("an alike page beyond RAM", PAGES, "page + count < total && ", ""),
    Mutant("one page of registers is not hidden", TABLES, "(), WINDOW_PAGES);", "(), WINDOW_PAGES - 1);"),
    Mutant("one register is not zeroed", NPU, "BYTES / sizeof(u64); i++", "BYTES / sizeof(u64) - 1; i++"),
    Mutant("too much is zeroed", NPU, "BYTES / sizeof(u64); i++", "BYTES / sizeof(u64) + 1; i++"),
    Mutant(
        "code in the sandbox can be written",
        TABLES,
        " | 1ULL << 6 | 0xfULL << 2 | VALID",
        " | 3ULL << 6 | 0xfULL << 2 | VALID",
    ),
    Mutant("the stack in the sandbox can be executed", TABLES, "(STAGE2_RAM | 1ULL << 54)", "(STAGE2_RAM)"),
    Mutant(
        "pages of the sandbox beside it",
        TABLES,
        "here->stack, 1, SANDBOX",
        "here->stack, 2, SANDBOX",
    ),
)
#: Fewer pages and shorter calls than those of the proofs, for speed: what fails for a small one fails. A call
#: names a page more than the sandbox has for code.
SMALLER = {"-DPAGES=8": "-DPAGES=5", "-DSMALL_CALL=4": "-DSMALL_CALL=3"}
#: Which proof must notice which faults.
NOTICED = {
    "range": (
        "addresses need not be aligned",
        "no pages are a range",
        "ranges may run out of RAM",
        "ranges may start before RAM",
        "ranges may start after RAM",
        "the end of a range may wrap",
        "a range may be too long",
    ),
    "layout": (
        "hidden memory is not at the end",
        "tables upon the page states",
        "too few tables",
        "RAM over the registers",
    ),
    "redistributor": ("LPIs are told of", "LPIs are seen to be on", "all of the frame is seen"),
    "start": (
        "the monitor's memory is mapped",
        "a new start keeps who was attached",
        "a new start keeps the NPU's root",
        "code in the sandbox can be written",
        "the stack in the sandbox can be executed",
        "pages of the sandbox beside it",
    ),
    "call GRANT": (
        "a granted page stays mapped",
        "no flush of the CPUs",
        "no flush of the devices",
        "flush before unmapping",
        "publish before unmapping",
        "publish before the flush",
        "tell before the flush",
        "devices keep their mapping",
        "CPUs keep their mapping",
        "a page too few is hidden",
        "a page too many is hidden",
        "only the first page is checked",
        "the last page is not checked",
        "the last page is not moved",
        "pages are not counted",
        "the monitor's own pages move",
        "the OS's NPU does not forget what is granted",
        "the NPU forgets for the wrong world only",
    ),
    "call RETURN": (
        "RETURN checks nothing",
        "RETURN of what the OS has already",
        "RETURN passes over anything",
        "RETURN passes over what is recalled",
        "RETURN forgets a page",
        "scrub of what was only granted",
        "a recalled page goes back by RETURN",
        "a page too many is shown",
        "leaves lead to the page beside",
    ),
    "call TAKE": (
        "no scrub",
        "scrub after showing",
        "scrub of one page only",
        "TAKE checks nothing",
    ),
    "call STATE": ("an alike page beyond RAM",),
    "call POLL": ("a bell for nothing",),
    "call RELAX": (
        "protection off while attached",
        "protection off while pages are granted",
        "protection off before scrubbing",
        "protection off while the NPU is away",
    ),
    "call NPU_GRANT": (
        "the root is switched before the reset",
        "no reset on the way there",
        "registers are not hidden",
        "registers are known still",
        "registers are hidden after the reset",
        "one page of registers is not hidden",
        "code is hashed before it is copied",
        "the OS's code is hashed, not the copy",
        "code of pages that are not the OS's",
        "only the first page of code is checked",
        "code of any length",
        "the NPU is given unasked",
    ),
    "step": (
        "RECALL takes what is only granted",
        "commands of nobody",
        "whoever is gone stays attached",
        "who is gone keeps a page",
        "commands while a GONE is under way",
        "commands although notices have no room",
        "a sweep looks beyond RAM",
        "a sweep leaves out a page",
        "the NPU reaches what is recalled",
        "the NPU does not forget what is recalled",
        "recalled before the NPU forgets",
        "who is gone leaves pages to the NPU",
        "the NPU stays with who is gone",
        "committed pages are not opened",
        "the NPU goes back before its reset",
        "no reset on the way back",
        "the reset is not waited for",
        "registers are not zeroed",
        "one register is not zeroed",
        "too much is zeroed",
        "registers do not come back",
        "a want outlives its end",
        "the sandbox keeps its stack",
        "the sandbox keeps its code",
        "anybody drives the NPU",
        "what drives the NPU may take for ever",
        "commands overtake what drives the NPU",
    ),
    "fault": (
        "an access to a granted page is retried",
        "an access to a normal page is blocked",
        "faults are not counted",
    ),
    "end": (
        "at the end nothing is overwritten",
        "at the end one page of several is overwritten",
        "at the end what is secure is left out",
        "at the end the NPU goes on",
        "at the end the NPU's tables stay as they are",
        "at the end a page is left out",
    ),
}


@dataclass(frozen=True, slots=True)
class Doubt:
    """A proof, and a fault that it must notice; without one, whether what it speaks of is possible."""

    proof: Proof
    fault: Mutant | None = None

    @property
    def name(self) -> str:
        """What it is about, in words."""
        return f"{self.proof.name}: {self.fault.name if self.fault else 'says nothing'}"


def doubts() -> list[Doubt]:
    """Return all of them."""
    faults = {mutant.name: mutant for mutant in (*MUTANTS, *OWN)}
    smaller = [replace(one, defines=tuple(SMALLER.get(word, word) for word in one.defines)) for one in ALL]
    proofs = {proof.name: proof for proof in smaller}
    planted = [Doubt(proofs[name], faults[fault]) for name, listed in NOTICED.items() for fault in listed]
    return planted + [Doubt(proof) for proof in smaller]


def cleared(cbmc: Cbmc, doubt: Doubt, out: Path) -> bool:
    """Return whether the proof notices its fault; or, without one, that all that must be possible is."""
    if doubt.fault is None:
        return not ask(cbmc, doubt.proof, out, cover=True).failed
    fault = Replacement(doubt.fault.file, doubt.fault.old, doubt.fault.new)
    return bool(ask(cbmc, doubt.proof, out, (fault,)).failed)


def main(out: Path, tried: list[Doubt]) -> int:
    """Try everything; return 1 when a proof stands that should not, or says nothing."""
    cbmc = find()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        fine = list(pool.map(lambda each: cleared(cbmc, each[1], out / str(each[0])), enumerate(tried)))
    for doubt, seen in zip(tried, fine, strict=True):
        if not seen:
            sys.stdout.write(f"not noticed: {doubt.name}\n")
    faults = sum(doubt.fault is not None for doubt in tried)
    said = f"{faults} faults in the core, {len(tried) - faults} proofs that say something"
    sys.stdout.write(f"{sum(fine)} of {len(tried)} are as they must be: {said}\n")
    return 0 if all(fine) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), doubts()))
    except (NoCbmcError, ProofError) as error:
        sys.exit(f"nothing was tried: {error}")
