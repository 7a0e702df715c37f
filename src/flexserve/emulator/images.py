"""What a machine boots from, with a secure world inside of it or without."""

from __future__ import annotations

from flexserve.emulator import build, tools, trusted_app
from flexserve.emulator.build import Images, Options
from flexserve.emulator.packages import Progress


def images_for(
    *, ram_bytes: int, cpus: int, progress: Progress, npu: bool = False, inside: bool = False
) -> Images:
    """Return what such a machine boots from, having built what is missing: with `inside` minutes, once.

    Raises as emulator.build.build and trusted_app.build.
    """
    cache = trusted_app.default_cache()
    tools.require(*build.NEEDED, *(trusted_app.NEEDED if inside else ()))  # all that is missing at once
    return build.build(
        cache,
        ram_bytes=ram_bytes,
        cpus=cpus,
        progress=progress,
        options=Options(npu=npu),
        application=trusted_app.build(cache, progress).application if inside else None,
    )
