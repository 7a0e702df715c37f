"""What benchmarks draw with: matplotlib, which an installation without the extra `bench` does not have."""

from __future__ import annotations

from typing import Any

from flexserve.errors import CallerError


def pyplot() -> Any:
    """Return matplotlib's pyplot, which draws into files. Raises CallerError where it is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise CallerError(
            "Plots need matplotlib, which is not installed here.",
            hint="Install it with `pip install 'flexserve[bench]'`, or leave --plot away.",
            code="extra_missing",
        ) from None
    mpl.use("Agg")
    from matplotlib import pyplot as drawn

    return drawn
