"""docs/structure.md, and the table of trust in docs/threat-model.md, from the packages' own words.

    python -m flexserve.testing.structure FOLDER-OF-DOCS

The docstring of a package says what it is, and in lines of their own "Trusted with:" and "Sees:"; the first
paragraph of a module's docstring says what that is.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
_TRUST = re.compile(r"\nTrusted with: (?P<trusted>.+?)\.\nSees: (?P<sees>.+?)\.\n?$", re.DOTALL)
BEGIN, END = "<!-- generated: packages -->", "<!-- end -->"
_HEADER = "| Package | Trusted with | Sees in clear |\n|---|---|---|"


def structure() -> str:
    """Return docs/structure.md."""
    parts = ["# Every module in a line\n\nWritten by `python -m flexserve.testing.structure docs`."]
    for package in _packages():
        parts.append(f"\n## {_name(package)}\n{_what(package / '__init__.py')}\n\n| Module | |\n|---|---|")
        modules = sorted(path for path in package.glob("*.py") if path.name != "__init__.py")
        parts += [f"| `{path.name}` | {_what(path)} |" for path in modules]
    return "\n".join(parts) + "\n"


def trust_table() -> str:
    """Return the rows of the threat model's table that are packages of Python."""
    rows = []
    for package in _packages():
        found = _TRUST.search(_docstring(package / "__init__.py"))
        if found is None:
            raise ValueError(f"{package}/__init__.py does not say what it is trusted with, and what it sees")
        trusted, sees = (" ".join(found[name].split()) for name in ("trusted", "sees"))
        rows.append(f"| `{_name(package)}` | {trusted} | {sees} |")
    return "\n".join(rows)


def with_table(document: str) -> str:
    """Return the threat model with the present table. Raises ValueError for a document without the marks."""
    head, begin, rest = document.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no {BEGIN} … {END}")
    return f"{head}{BEGIN}\n{_HEADER}\n{trust_table()}\n{END}{tail}"


def _packages() -> Iterator[Path]:
    for path in sorted(ROOT.rglob("__init__.py")):
        if path.parent != ROOT and _TRUST.search(_docstring(path)):
            yield path.parent
        elif path.parent != ROOT and path.parent.parent == ROOT:
            raise ValueError(f"{path} does not say what it is trusted with, and what it sees")


def _name(package: Path) -> str:
    return f"{package.relative_to(ROOT)}/"


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text()), clean=True) or ""


def _what(path: Path) -> str:
    """Return the first paragraph of a docstring."""
    return " ".join(_docstring(path).split("\n\n")[0].split())


def main() -> None:
    """Write both documents."""
    docs = Path(sys.argv[1])
    (docs / "structure.md").write_text(structure())
    model = docs / "threat-model.md"
    model.write_text(with_table(model.read_text()))


if __name__ == "__main__":
    main()
