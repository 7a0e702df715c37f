"""llama.cpp's C interface, `lib`, without what else llama-cpp-python has.

Importing `llama_cpp` imports a whole client of it. That takes longer than all that the secure process needs.
So an empty package of that name is put in its place. It is filled as usual as soon as somebody asks it for
something.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import sys
import types
from pathlib import Path
from typing import Any

_NAME = "llama_cpp"
_VERSION = re.compile(r'^__version__ = "([^"]+)"', re.MULTILINE)


class _Package(types.ModuleType):
    """The package, not filled."""

    def __getattr__(self, name: str) -> Any:
        spec = self.__spec__
        if name.startswith("__") or spec is None or spec.loader is None or _is_module(spec, name):
            raise AttributeError(f"module {_NAME!r} has no attribute {name!r}")
        self.__class__ = types.ModuleType  # type: ignore[assignment]  # once
        spec.loader.exec_module(self)
        return getattr(self, name)


def _is_module(spec: importlib.machinery.ModuleSpec, name: str) -> bool:
    return any((Path(place) / f"{name}.py").exists() for place in spec.submodule_search_locations or ())


def _put_in_place() -> None:
    spec = importlib.util.find_spec(_NAME)
    if spec is not None:
        package = importlib.util.module_from_spec(spec)
        package.__class__ = _Package
        sys.modules[_NAME] = package


def _version() -> str:
    spec = sys.modules[_NAME].__spec__
    found = _VERSION.search(Path(spec.origin).read_text()) if spec is not None and spec.origin else None
    return found[1] if found else ""


if _NAME not in sys.modules:
    _put_in_place()

import llama_cpp.llama_cpp as lib  # noqa: E402

VERSION = _version()  # of llama-cpp-python ("": it does not say); read now, as it cannot be in the sandbox

__all__ = ["VERSION", "lib"]
