"""The Flex-Monitor's interface. Made by abi/generate.py from abi/flex.toml: do not edit."""

from __future__ import annotations

import enum

VERSION = 3
PAGE_BYTES = 4096
CALL_PAGES_MAX = 512
SMC_BASE = 0xC6000000
CALL_RUN = 0x80
HIDDEN_BYTES = 0x1800000
HIDDEN_STATES = 0x120000
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
OFFSET_NPU_DRIVER = 384
OFFSET_NPU_STATE = 416
NPU_WINDOW_OFFSET = 0x100000
NPU_WINDOW_BYTES = 0x10000
NPU_WINDOW_KEPT = 0x8
NPU_CONTROL_OFFSET = 0x110000
NPU_CODE_BYTES_MAX = 0x2000
NPU_VERSION = 0x464E5055
NPU_VERSION_NUM = 0x1
NPU_COMMANDS_MAX = 0x1000
NPU_START = 0x0
NPU_OFFSET_ROOT = 0
NPU_OFFSET_RESET = 8
NPU_OFFSET_RESET_DONE = 12
NPU_OFFSET_FLUSH = 16
NPU_OFFSET_FLUSH_DONE = 20
NPU_OFFSET_BUSY = 24


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
    NPU_GRANT = 12
    NPU_ASK = 13
    NPU_STATE = 14


class Notice(enum.IntEnum):
    """What the monitor tells the normal world."""

    NONE = 0
    WANT = 1
    OFFER = 2
    UNWANTED = 3
    ATTACHED = 4
    GONE = 5
    MORE = 6
    WAIT = 7
    NPU_WANTED = 8
    NPU_BACK = 9


class Command(enum.IntEnum):
    """What the secure world can ask for."""

    ATTACH = 1
    GONE = 2
    WANT = 3
    COMMIT = 4
    RECALL = 5
    REFUSE = 6
    NPU_WANT = 7
    NPU_DRIVE = 8
    NPU_RELEASE = 9


class Event(enum.IntEnum):
    """What the monitor tells the secure world."""

    GRANTED = 1
    ANSWER = 2
    DONE = 3
    TAKEN = 4
    PRESSURE = 5
    ATTACHED = 7
    DETACHED = 6
    NPU_GRANTED = 8
    NPU_ASKED = 9


class Byte(enum.IntEnum):
    """What goes over the secure UART."""

    RING = 33
    QUERY = 63
    EVENT = 101
    ON = 80
    OFF = 85


class RunAnswer(enum.IntEnum):
    """Why a CPU that was lent is the normal world's again."""

    INTERRUPTED = 1
    IDLE = 2
    ENDED = 3


class MeasuredByte(enum.IntEnum):
    """What EL3 says of EL2, over the same wire."""

    ASK = 109
    NIBBLE = 128
    ON = 144
    OFF = 145
    TAMPERED = 146


class NpuState(enum.IntEnum):
    """Whose the NPU is."""

    ABSENT = 0
    NORMAL = 1
    ENTERING = 2
    SECURE = 3
    LEAVING = 4


class NpuRegister(enum.IntEnum):
    """The NPU's registers: bytes from the window's start."""

    VERSION = 0
    VERSION_NUM = 4
    OP_EN = 8
    DATA_ADDR = 16
    DATA_AMOUNT = 20
    INT_MASK = 32
    INT_CLEAR = 36
    INT_STATUS = 40
    INT_RAW = 44
    TASK_CON = 48
    DMA_BASE = 52
    TASK_STATUS = 60
    MMU_DTE_ADDR = 36864
    MMU_STATUS = 36868
    MMU_COMMAND = 36872
    MMU_PAGE_FAULT_ADDR = 36876


class NpuInterrupt(enum.IntFlag):
    """Bits of INT_RAW."""

    DONE = 1
    READ_FAULT = 16
    WRITE_FAULT = 32
    BAD_COMMAND = 64


class NpuMmuStatus(enum.IntFlag):
    """Bits of MMU_STATUS."""

    PAGING = 1
    FAULT = 2
    IDLE = 4
    MONITOR = 16


class NpuMmuCommand(enum.IntEnum):
    """What can be written to MMU_COMMAND."""

    ENABLE = 1
    DISABLE = 2
    ZAP = 4
    RESET = 6


class NpuTarget(enum.IntEnum):
    """What a command of a job is for."""

    RUN = 129
    PC = 257
    CNA = 513
    CORE = 2049
    DPU = 4097


class NpuOperand(enum.IntEnum):
    """The registers that commands set up an operation with."""

    FORMAT = 4096
    M = 4100
    N = 4104
    K = 4108
    A = 4112
    A_STRIDE = 4116
    B = 4120
    B_STRIDE = 4124
    C = 16384
    C_STRIDE = 16388


class NpuFormat(enum.IntEnum):
    """What is multiplied, and the bit that keeps B."""

    INT8 = 1
    FP16 = 2
    Q8_0 = 3
    REUSE = 256


TRANSITIONS: dict[tuple[PageState, str], PageState] = {
    (PageState.NORMAL, "GRANT"): PageState.GRANTED,
    (PageState.GRANTED, "COMMIT"): PageState.SECURE,
    (PageState.GRANTED, "RETURN"): PageState.NORMAL,
    (PageState.SECURE, "RECALL"): PageState.RECALLING,
    (PageState.RECALLING, "SCRUBBED"): PageState.NORMAL,
}
