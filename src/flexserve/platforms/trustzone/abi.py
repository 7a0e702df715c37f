"""The Flex-Monitor's interface. Made by abi/generate.py from abi/flex.toml: do not edit."""

from __future__ import annotations

import enum

VERSION = 1
PAGE_BYTES = 4096
CALL_PAGES_MAX = 512
SMC_BASE = 0xC6000000
HIDDEN_BYTES = 0x1000000
BOARD_MAGIC = 0x4452414F42584C46
BOARD_OFFSET = 0x40
DOORBELL_INTID = 128
MAGIC = 0x464C455831303030
SLOTS = 4096
HEADER_BYTES = 4096
SLOT_BYTES = 32
OFFSET_MAGIC = 0
OFFSET_VERSION = 8
OFFSET_RAM_BASE = 16
OFFSET_RAM_BYTES = 24
OFFSET_STATES_OFFSET = 32
OFFSET_FAULTS = 40
OFFSET_COMMAND_HEAD = 64
OFFSET_COMMAND_TAIL = 128
OFFSET_EVENT_HEAD = 192
OFFSET_EVENT_TAIL = 256
OFFSET_SLEEPING = 320


class PageState(enum.IntEnum):
    """Who owns a page of the machine, as the monitor's table says it."""

    NORMAL = 0
    GRANTED = 1
    SECURE = 2
    RECALLING = 3
    MONITOR = 4


class Status(enum.IntEnum):
    """What came of a call or of a command."""

    OK = 0
    UNKNOWN = -1
    INVALID = -2
    DENIED = -3
    BUSY = -4
    TAMPERED = -5
    HELD = -6


class Call(enum.IntEnum):
    """What the normal world can ask for: offsets from SMC_BASE."""

    VERSION = 0
    LAYOUT = 1
    GRANT = 2
    RETURN = 3
    TAKE = 4
    STATE = 5
    POLL = 6
    ANSWER = 7
    PRESSURE = 8
    COUNTS = 9
    RELAX = 10
    DETACH = 11


class Notice(enum.IntEnum):
    """What the monitor tells the normal world."""

    NONE = 0
    WANT = 1
    OFFER = 2
    UNWANTED = 3
    ATTACHED = 4
    GONE = 5
    MORE = 6


class Command(enum.IntEnum):
    """What the secure world can ask for."""

    ATTACH = 1
    GONE = 2
    WANT = 3
    COMMIT = 4
    RECALL = 5
    REFUSE = 6


class Event(enum.IntEnum):
    """What the monitor tells the secure world."""

    GRANTED = 1
    ANSWER = 2
    DONE = 3
    TAKEN = 4
    PRESSURE = 5
    ATTACHED = 7
    DETACHED = 6


class Byte(enum.IntEnum):
    """What goes over the secure UART."""

    RING = 33
    QUERY = 63
    EVENT = 101
    ON = 80
    OFF = 85


TRANSITIONS: dict[tuple[PageState, str], PageState] = {
    (PageState.NORMAL, "GRANT"): PageState.GRANTED,
    (PageState.GRANTED, "COMMIT"): PageState.SECURE,
    (PageState.GRANTED, "RETURN"): PageState.NORMAL,
    (PageState.SECURE, "RECALL"): PageState.RECALLING,
    (PageState.RECALLING, "SCRUBBED"): PageState.NORMAL,
}
