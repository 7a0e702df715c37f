"""The emulated NPU: a process beside QEMU on the machine's RAM.

Trusted with: **everything**, on this platform.
Sees: operands of its jobs.
"""

from __future__ import annotations

import sys


def command(ram_fd: int, ram_bytes: int) -> list[str]:
    """Return the command line of the process, which inherits RAM's descriptor."""
    return [sys.executable, "-I", "-m", __name__, "--ram-fd", str(ram_fd), "--ram-bytes", str(ram_bytes)]
