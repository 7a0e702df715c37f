"""Lines of trusted code, and how many there may be.

    python -m flexserve.testing.trusted_lines

Of C, C++ and assembly (`PARTS`): what a makefile's target `lines` counts, without blank lines and comments,
once the compiler has taken those out. Neither llama.cpp, the C and C++ libraries nor cryptography are among
them. The monitor is counted as a whole: what EL3 needs to switch between the worlds may stand in any of its
folders.

Of Python: by how many lines sealed sessions and attestation made the trusted side larger. Counted are the
modules that the processes of a secure world import for them, without blank lines, comments and docstrings.
What only clients run is in modules of its own, which a secure world does not import. Neither licences of
vendors are among them, nor what older modules gained: some 75 lines of the key's holder, its other end and
the world's loop.
"""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import tokenize
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from flexserve import interpreter
from flexserve.attestation.measurement import PROGRAMS

MOST = 1200
_ROOT = Path(__file__).parents[3]
_PACKAGES = (
    "flexserve.attestation.",
    "flexserve.protocol.sealed_",
    "flexserve.trusted.identity.",
    "flexserve.trusted.sessions.",
)
_MODULES = (
    "flexserve.interpreter",
    "flexserve.platforms.linux.secret_page",
    "flexserve.platforms.trustzone.measured_boot",
    "flexserve.secure_world.attester",
)
_OF_VENDORS = ("flexserve.attestation.licence",)
_NO_CODE = (
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
)


@dataclass(frozen=True, slots=True)
class Part:
    """A folder of trusted C, C++ and assembly, and the lines that it may have at most."""

    folder: str
    most: int
    target: str = "lines"  # of its makefile


# Ours around the libraries in the application: HPKE, COSE, sealed chunks and frames, SHA-3 for ML-KEM.
CRYPTOGRAPHY = Part("trusted-app", 600, "lines-of-cryptography")
MONITOR_BEFORE = 3048  #: when EL3 began to switch a CPU between the worlds; 700 are for that
PARTS = (
    Part("monitor", MONITOR_BEFORE + 700),
    Part("secure-os", 3000),
    Part("trusted-app", 2500),
    CRYPTOGRAPHY,
)


def lines_of(part: Part) -> int:
    """Return the lines of a part, as its makefile counts them. Needs make and gcc, and the sources."""
    command = ["make", "--no-print-directory", "-s", "-C", str(_ROOT / part.folder), part.target]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


def imported() -> dict[str, Path]:
    """Return all modules of ours that a secure world's programs import, and their files."""
    code = (
        f"import sys, json; {'; '.join(f'import {program}' for program in PROGRAMS)}; "
        "print(json.dumps({n: m.__file__ for n, m in sys.modules.items() if n.startswith('flexserve')}))"
    )
    command = [sys.executable, *interpreter.OPTIONS[:3], "-c", code]
    printed = subprocess.run(command, capture_output=True, check=True).stdout
    return {name: Path(file) for name, file in json.loads(printed).items()}


def added(modules: Collection[str]) -> list[str]:
    """Return those of `modules` that are there for attestation and sealed sessions."""
    found = (name for name in modules if name.startswith(_PACKAGES) or name in _MODULES)
    return sorted(name for name in found if name not in _OF_VENDORS)


def lines_of_code(source: str) -> int:
    """Return the lines of a source that are neither blank nor only of comments and docstrings."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            said = node.body[0]
            lines.difference_update(range(said.lineno, (said.end_lineno or said.lineno) + 1))
    return len(lines)


def main() -> int:
    """Print the lines of each part and module; return 1 when there are too many of any kind."""
    sizes = [(part, lines_of(part)) for part in PARTS]
    for part, lines in sizes:
        sys.stdout.write(f"{lines:5}  of {part.most} at most: {part.folder}/ ({part.target})\n")
    modules = imported()
    counted = {name: lines_of_code(modules[name].read_text()) for name in added(modules)}
    for name, lines in counted.items():
        sys.stdout.write(f"{lines:5}  {name}\n")
    total = sum(counted.values())
    sys.stdout.write(f"{total:5}  of {MOST} at most: Python\n")
    return int(total > MOST or any(lines > part.most for part, lines in sizes))


if __name__ == "__main__":
    sys.exit(main())
