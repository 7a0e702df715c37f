#!/usr/bin/env python3
"""Copy the core to a folder, with a few texts replaced: the small machine of the tests.

variant.py TARGET

The trusted source has no switches for tests; mutants.py puts faults in by the same means. Each old text
must be there exactly once, or this fails: a replacement cannot quietly stop to match.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

MONITOR = Path(__file__).resolve().parents[1]
SECURE_OS = MONITOR.parent / "secure-os"
ABI = MONITOR.parent / "abi" / "flex.h"
LIMITS = "core/limits.h"


@dataclass(frozen=True, slots=True)
class Replacement:
    """`old`, once in `file` (relative to the copy), becomes `new`."""

    file: str
    old: str
    new: str


#: RAM is one block, of which SMALL_PAGES pages are not the monitor's; queues hold next to nothing.
SMALL = (
    Replacement(
        "flex.h", "FLEX_HIDDEN_BYTES 0x1800000", "FLEX_HIDDEN_BYTES (0x200000 - SMALL_PAGES * 0x1000)"
    ),
    Replacement(LIMITS, "RAM_BYTES_MIN 0x10000000ULL", "RAM_BYTES_MIN 0x200000ULL"),
    Replacement(LIMITS, "NOTICES_MAX 64", "NOTICES_MAX SMALL_NOTICES"),
    Replacement(LIMITS, "POLL_STEPS_MAX 64", "POLL_STEPS_MAX SMALL_STEPS"),
    Replacement(LIMITS, "NPU_TURNS_MAX 32", "NPU_TURNS_MAX SMALL_TURNS"),
)


def make(target: Path, replacements: tuple[Replacement, ...], tree: Path = MONITOR) -> None:
    """Write `tree`'s core/ and flex.h to `target`. Raises ValueError for a text that is not there once."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(tree / "core", target / "core")
    shutil.copy(ABI, target)
    for each in replacements:
        path = target / each.file
        text = path.read_text()
        if text.count(each.old) != 1:
            raise ValueError(f"{each.file}: {each.old!r} is there {text.count(each.old)} times")
        path.write_text(text.replace(each.old, each.new))


if __name__ == "__main__":
    make(Path(sys.argv[1]), SMALL)
