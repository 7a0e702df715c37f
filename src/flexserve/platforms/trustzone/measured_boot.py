"""The layers below the secure world on the emulated machine, as those say who started them.

The launcher, which plays the boot ROM, says which firmware it verified and started. That firmware is EL3, and
says over the secure UART which EL2 it started, and whether it protects.
"""

from __future__ import annotations

from flexserve.errors import MonitorError
from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.mailbox import Mailbox

_PATIENCE = 5.0  # seconds for an answer


def started_el2(mailbox: Mailbox) -> bytes:
    """Return SHA-256 of the EL2 that protects this machine now; protection is switched on if it is off.

    Raises MonitorError when EL3 does not answer, or says anything but that protection is on.
    """
    mailbox.attach(_PATIENCE)  # an OS that nobody asked for memory switches protection off
    said = mailbox.measured(_PATIENCE)
    if said is None:
        raise MonitorError(
            "The monitor does not say what it is.", hint="Restart the machine.", code="monitor_silent"
        )
    if said.protection is not abi.MeasuredByte.ON:
        raise MonitorError(
            f"The monitor does not protect this machine: it says {said.protection.name}.",
            hint="Restart the machine." if said.protection is abi.MeasuredByte.TAMPERED else "Retry.",
            code="monitor_off",
        )
    return said.digest
