#!/usr/bin/env python3
"""Prove what tests/proofs says of the secure OS's core, by CBMC; and see that each proof can fail.

secure_os_proofs.py prove OUT [NAME...]    OUT: a folder to build in; NAMES: these proofs only
secure_os_proofs.py refute OUT

How a proof is made and tried is monitor/tests/prove.py's and refute.py's, which have to be on PYTHONPATH.
"""

from __future__ import annotations

import sys
from pathlib import Path

import prove
import refute
from cbmc import NoCbmcError
from prove import Proof, ProofError
from refute import Doubt
from secure_os_faults import NOTICED
from variant import SECURE_OS, Replacement

LIMITS = "core/limits.h"
#: Sizes that the loops follow: pages of the two pools and of a call, pieces of the address space.
SMALL = (
    Replacement("flex.h", "FLEX_MAILBOX_HEADER_BYTES 4096", "FLEX_MAILBOX_HEADER_BYTES 320"),
    Replacement("flex.h", "FLEX_CALL_PAGES_MAX 512", "FLEX_CALL_PAGES_MAX 2"),
    Replacement(LIMITS, "AREAS_MAX 256", "AREAS_MAX 2"),
    Replacement(LIMITS, "TABLES_KEPT 1024", "TABLES_KEPT 2"),
    Replacement(LIMITS, "WRITE_BYTES_MAX 256", "WRITE_BYTES_MAX 4"),
    Replacement(LIMITS, "RANDOM_BYTES_MAX 256", "RANDOM_BYTES_MAX 4"),
    Replacement("core/flex_calls.h", "SECRET_BYTES 32", "SECRET_BYTES 4"),
)
POOLS = (
    *SMALL,
    Replacement(LIMITS, "RAM_PAGES_MAX 0xc0000ULL", "RAM_PAGES_MAX 128ULL"),
    Replacement(LIMITS, "SECURE_PAGES_MAX 3840ULL", "SECURE_PAGES_MAX 128ULL"),
)
RAM = (*SMALL, Replacement(LIMITS, "RAM_PAGES_MAX 0xc0000ULL", "RAM_PAGES_MAX 64ULL"))
#: Tables of four words: an entry's place within one is but a number.
SMALL_TABLES = (
    *SMALL,
    Replacement("core/tables.c", "#define ENTRIES (PAGE / sizeof(u64))", "#define ENTRIES 4ULL"),
)
SMALL_PAGE = (*SMALL, Replacement(LIMITS, "PAGE 4096ULL", "PAGE 2ULL"))


def proof(
    name: str,
    source: str,
    *,
    bounds: tuple[Replacement, ...] = SMALL,
    case: int = 0,
    unwind: int = 9,
    instrument: tuple[str, ...] = (),
) -> Proof:
    """Return a proof of the secure OS's core: a harness that includes the sources it speaks of."""
    return Proof(
        name,
        source,
        core=(),
        helpers=(),
        defines=(f"-DCASE={case}", "-DFLEX_MAILBOX_SLOTS=2"),
        unwind=unwind,
        loops="",
        instrument=instrument,
        options=(),
        bounds=bounds,
        tree=SECURE_OS,
    )


def cases(
    what: str, source: str, names: str, bounds: tuple[Replacement, ...], unwind: int
) -> tuple[Proof, ...]:
    """Return a proof for each case of a harness, in the order of their numbers."""
    return tuple(
        proof(f"{what} {name}", source, bounds=bounds, case=case, unwind=unwind)
        for case, name in enumerate(names.split())
    )


ALL = (
    *cases("pages", "prove_pages.c", "take put withdraw start", POOLS, 5),
    *cases("tables", "prove_tables.c", "map protect unmap reach end", SMALL_TABLES, 5),
    *cases("areas", "prove_areas.c", "private protect free", SMALL, 5),
    *cases("flexmem", "prove_flexmem.c", "map give unmap command event ring take end", RAM, 7),
    proof("user", "prove_user.c", bounds=SMALL_PAGE, unwind=8),
    proof("mailbox moves", "prove_mailbox.c", instrument=("--nondet-volatile",)),
    proof("mailbox settled", "prove_mailbox.c", case=1),
    proof("mailbox reset", "prove_mailbox.c", case=2),
    proof("calls", "prove_calls.c", unwind=18),
)


def doubts() -> list[Doubt]:
    """Return the faults, each with the proof that must notice it, and proofs that must say something."""
    proofs = {each.name: each for each in ALL}
    planted = [Doubt(proofs[name], fault) for name, faults in NOTICED.items() for fault in faults]
    # What must be possible is looked for in a whole harness: one of several cases never does all of it.
    return planted + [Doubt(proofs[name]) for name in ("user", "calls")]


if __name__ == "__main__":
    try:
        if sys.argv[1] == "refute":
            sys.exit(refute.main(Path(sys.argv[2]), doubts()))
        sys.exit(prove.main(Path(sys.argv[2]), sys.argv[3:], ALL))
    except (NoCbmcError, ProofError) as error:
        sys.exit(f"nothing was proved: {error}")
