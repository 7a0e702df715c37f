"""Making a process hard to look into: what Linux lets a process give up for good."""

from __future__ import annotations

import ctypes
import os
import resource

from flexserve.errors import NormalWorldError

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4


def harden(keep: set[int]) -> None:
    """Give up core dumps, being debugged by one's own user, new privileges and stray descriptors.

    Not dumpable: no core, no ptrace and no /proc/PID/mem but for root (who is kept out of
    Flex-Mem by memfd_secret itself). Descriptors other than 0–2 and `keep` are closed, and all
    are closed on exec. Raises NormalWorldError when the kernel refuses.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    stay_hidden()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if fd > 2 and fd not in keep:
                os.close(fd)
            else:
                os.set_inheritable(fd, False)
        except OSError:
            continue  # the descriptor of the listing itself


def stay_hidden() -> None:
    """Have the kernel refuse core dumps of this process, and tracing to all but root."""
    _prctl(_PR_SET_DUMPABLE, 0)


def die_with_parent(signal: int) -> None:
    """Have the kernel send `signal` to this process when its parent is gone."""
    _prctl(_PR_SET_PDEATHSIG, signal)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise NormalWorldError(
            f"The kernel refused prctl({option}, {value}): {os.strerror(ctypes.get_errno())}.",
            hint="Allow prctl in the sandbox or container that runs flexserve.",
        )
