"""Importing a server, without what takes a fifth of the time that this needs and is of no use to it."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Inside, import a program that serves HTTP. For programs: modules are hidden from all of the process."""
    gc.disable()  # imports leave many objects that live to the end, and hardly any garbage
    try:
        # By rich, structlog draws tracebacks with the values of variables, which no log has.
        with hidden("rich"):
            import structlog  # noqa: F401
        # FastAPI asks of each annotation whether it is a model of pydantic's first version. None is.
        sys.modules.setdefault("pydantic.v1", None)  # type: ignore[arg-type]
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def hidden(name: str) -> Iterator[None]:
    """Have nothing that is imported inside find the package `name`."""
    found = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # as `import` has it: raise ImportError
    try:
        yield
    finally:
        del sys.modules[name]
        if found is not None:
            sys.modules[name] = found
