"""Lines of code by which sealed sessions and attestation made the trusted side larger.

    python -m flexserve.testing.trusted_lines

Counted are the modules that the processes of a secure world import for them, without blank lines, comments
and docstrings. What only clients run is in modules of its own, which a secure world does not import. Neither
licences of vendors are among them, nor what older modules gained: some 75 lines of the key's holder, its
other end and the world's loop.
"""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import tokenize
from collections.abc import Collection
from pathlib import Path

from flexserve import interpreter
from flexserve.attestation.measurement import PROGRAMS

MOST = 1200
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
    """Print the lines of each module; return 1 when there are too many."""
    modules = imported()
    counted = {name: lines_of_code(modules[name].read_text()) for name in added(modules)}
    for name, lines in counted.items():
        sys.stdout.write(f"{lines:5}  {name}\n")
    total = sum(counted.values())
    sys.stdout.write(f"{total:5}  of {MOST} at most\n")
    return int(total > MOST)


if __name__ == "__main__":
    sys.exit(main())
