"""Where the monitor's part of RAM has what the secure world maps (monitor/core/layout.h).

Calculated, not looked for: while protection is off the OS could write something that looks like it.
"""

from __future__ import annotations

import struct

from flexserve.platforms.trustzone import abi
from flexserve.platforms.trustzone.ram import BASE, PAGE
from flexserve.units import align_up

RING_BYTES = abi.SLOTS * abi.SLOT_BYTES
MAILBOX_BYTES = abi.HEADER_BYTES + 2 * RING_BYTES


def hidden_offset(ram_bytes: int) -> int:
    """Return where the monitor's part of RAM begins. This and all the others: bytes from RAM's start."""
    return ram_bytes - abi.HIDDEN_BYTES


def states_offset(ram_bytes: int) -> int:
    """Return where the page states begin, one byte for each page of RAM."""
    return hidden_offset(ram_bytes) + abi.HIDDEN_STATES


def npu_window_offset(ram_bytes: int) -> int:
    """Return where the NPU's registers are: memory that device and driver agree on."""
    return hidden_offset(ram_bytes) + abi.NPU_WINDOW_OFFSET


def npu_control_offset(ram_bytes: int) -> int:
    """Return where the page between monitor and NPU is."""
    return hidden_offset(ram_bytes) + abi.NPU_CONTROL_OFFSET


def mailbox_offset(ram_bytes: int) -> int:
    """Return where the mailbox begins: it ends RAM."""
    return ram_bytes - align_up(MAILBOX_BYTES, PAGE)


def header(ram_bytes: int) -> bytes:
    """Return how the mailbox of a monitor that guards `ram_bytes` begins."""
    fields = {
        abi.OFFSET_MAGIC: abi.MAGIC,
        abi.OFFSET_VERSION: abi.VERSION,
        abi.OFFSET_RAM_BASE: BASE,
        abi.OFFSET_RAM_BYTES: ram_bytes,
        abi.OFFSET_STATES_OFFSET: states_offset(ram_bytes),
    }
    data = bytearray(max(fields) + 8)
    for offset, value in fields.items():
        struct.pack_into("<Q", data, offset, value)
    return bytes(data)
