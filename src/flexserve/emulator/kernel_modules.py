"""Modules of the stock kernel, and what each of them needs loaded before it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from flexserve.errors import InternalError


def with_dependencies(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return the files of modules and of what they depend on, in an order in which they load."""
    files = {path.stem.replace("-", "_"): path for path in folder.rglob("*.ko")}
    builtin = {
        Path(line).stem.replace("-", "_") for line in (folder / "modules.builtin").read_text().splitlines()
    }
    ordered: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in ordered or name in builtin:
            return
        if name not in files:
            raise InternalError(f"This kernel has no module {name}.", hint="Report this.")
        for needed in _depends(files[name].read_bytes()):
            add(needed)
        ordered[name] = files[name]

    for name in names:
        add(name)
    return list(ordered.values())


def _depends(module: bytes) -> list[str]:
    """Return what a module's own description says it needs loaded before."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    words = found[1].decode() if found else ""
    return [name.replace("-", "_") for name in words.split(",") if name]
