"""What a machine boots from, with a secure world inside of it or without."""

from __future__ import annotations

from pathlib import Path

from flexserve.emulator import build, tools, trusted_app
from flexserve.emulator.build import Images, Options
from flexserve.emulator.packages import Progress
from flexserve.errors import FlexServeError

_BESIDE = (
    "With `--secure-world host` models compute beside the machine, and it needs neither llama.cpp nor a C++ "
    "compiler for it."
)


def images_for(
    *, ram_bytes: int, cpus: int, progress: Progress, npu: bool = False, inside: bool = False
) -> Images:
    """Return what such a machine boots from, having built what is missing: with `inside` minutes, once.

    Raises as emulator.build.build and trusted_app.build.
    """
    cache = trusted_app.default_cache()
    return build.build(
        cache,
        ram_bytes=ram_bytes,
        cpus=cpus,
        progress=progress,
        options=Options(npu=npu),
        application=_application(cache, progress) if inside else None,
    )


def _application(cache: Path, progress: Progress) -> Path:
    """Return the application, having built it. What keeps it from being built says what works without it."""
    try:
        tools.require(*build.NEEDED, *trusted_app.NEEDED)  # all that is missing at once
        return trusted_app.build(cache, progress).application
    except FlexServeError as error:
        error.hint = f"{error.hint} {_BESIDE}".lstrip()
        raise
