"""Packages of which a process needs one module, and that import much more: an empty one in their place.

The empty package is filled as usual as soon as somebody asks it for something.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any


class _Package(types.ModuleType):
    """A package, not filled."""

    def __getattr__(self, name: str) -> Any:
        spec = self.__spec__
        if name.startswith("__") or spec is None or spec.loader is None or _is_module(spec, name):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__class__ = types.ModuleType  # type: ignore[assignment]  # once
        spec.loader.exec_module(self)
        return getattr(self, name)


def put_in_place(name: str) -> None:
    """Have `import NAME.MODULE` import that module alone, unless NAME is imported already, or not there."""
    spec = importlib.util.find_spec(name) if name not in sys.modules else None
    if spec is not None:
        package = importlib.util.module_from_spec(spec)
        package.__class__ = _Package
        sys.modules[name] = package


def _is_module(spec: ModuleSpec, name: str) -> bool:
    return any((Path(place) / f"{name}.py").exists() for place in spec.submodule_search_locations or ())
