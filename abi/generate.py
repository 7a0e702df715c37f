#!/usr/bin/env python3
"""Make from abi/flex.toml what monitor, driver, secure side and readers use of it.

abi/generate.py            write abi/*.h, src/flexserve/platforms/trustzone/abi.py and docs/abi.md
abi/generate.py --check    exit with 1 and say which of them is not what would be written
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from c_headers import header, measured_header, run_header
from description import Abi, load
from python_module import python
from readers_page import page

ROOT = Path(__file__).resolve().parent.parent

PRODUCTS: dict[str, Callable[[Abi], str]] = {
    "abi/flex.h": header,
    "abi/flex_measured.h": measured_header,
    "abi/flex_run.h": run_header,
    "src/flexserve/platforms/trustzone/abi.py": python,
    "docs/abi.md": page,
}


def main(arguments: list[str]) -> int:
    """Write or check; return the exit status."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write(f"usage: {__doc__}")
        return 2
    abi = load()
    status = 0
    for name, make in PRODUCTS.items():
        path, text = ROOT / name, make(abi)
        if not arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.stderr.write(f"{name} is not what abi/flex.toml says: run abi/generate.py\n")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
