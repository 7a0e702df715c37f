"""llama.cpp's C interface, `lib`, without what else llama-cpp-python has.

Importing `llama_cpp` imports a whole client of it. That takes longer than all that the secure process needs.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from flexserve.trusted.bare_package import put_in_place

_NAME = "llama_cpp"
_VERSION = re.compile(r'^__version__ = "([^"]+)"', re.MULTILINE)


def _version() -> str:
    spec = sys.modules[_NAME].__spec__
    found = _VERSION.search(Path(spec.origin).read_text()) if spec is not None and spec.origin else None
    return found[1] if found else ""


put_in_place(_NAME)

import llama_cpp.llama_cpp as lib  # noqa: E402

VERSION = _version()  # of llama-cpp-python ("": it does not say); read now, as it cannot be in the sandbox

__all__ = ["VERSION", "lib"]
