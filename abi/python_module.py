"""The interface as a Python module."""

from __future__ import annotations

from description import NOTE, Abi

_CLASSES = {
    "state": ("PageState", "Who owns a page of the machine, as the monitor's table says it."),
    "status": ("Status", "What came of a call or of a command."),
    "call": ("Call", "What the normal world can ask for: offsets from SMC_BASE."),
    "notice": ("Notice", "What the monitor tells the normal world."),
    "command": ("Command", "What the secure world can ask for."),
    "event": ("Event", "What the monitor tells the secure world."),
    "byte": ("Byte", "What goes over the secure UART."),
    "run_answer": ("RunAnswer", "Why a CPU that was lent is the normal world's again."),
    "measured": ("MeasuredByte", "What EL3 says of EL2, over the same wire."),
    "npu_state": ("NpuState", "Whose the NPU is."),
    "npu_register": ("NpuRegister", "The NPU's registers: bytes from the window's start."),
    "npu_interrupt": ("NpuInterrupt", "Bits of INT_RAW."),
    "npu_mmu_status": ("NpuMmuStatus", "Bits of MMU_STATUS."),
    "npu_mmu_command": ("NpuMmuCommand", "What can be written to MMU_COMMAND."),
    "npu_target": ("NpuTarget", "What a command of a job is for."),
    "npu_operand": ("NpuOperand", "The registers that commands set up an operation with."),
    "npu_format": ("NpuFormat", "What is multiplied, and the bit that keeps B."),
}
_FLAGS = ("npu_interrupt", "npu_mmu_status")


def python(abi: Abi) -> str:
    """Return the Python module."""
    mailbox = abi["mailbox"]
    lines = [
        f'"""The Flex-Monitor\'s interface. {NOTE}"""',
        "",
        "from __future__ import annotations",
        "",
        "import enum",
        "",
    ]
    lines += [
        f"VERSION = {abi['version']}",
        f"PAGE_BYTES = {abi['page_bytes']}",
        f"CALL_PAGES_MAX = {abi['call_pages_max']}",
        f"SMC_BASE = 0x{abi['smc_base']:X}",
        f"CALL_RUN = 0x{abi['run']['number']:X}",
        f"HIDDEN_BYTES = 0x{abi['hidden_bytes']:X}",
        f"HIDDEN_STATES = 0x{abi['hidden_states']:X}",
        f"BOARD_MAGIC = 0x{abi['board_magic']:X}",
        f"BOARD_OFFSET = 0x{abi['board_offset']:X}",
        f"DOORBELL_INTID = {abi['doorbell_intid']}",
        f"MAGIC = 0x{mailbox['magic']:X}",
        f"SLOTS = {mailbox['slots']}",
        f"HEADER_BYTES = {mailbox['header_bytes']}",
        "SLOT_BYTES = 32",
    ]
    lines += [f"OFFSET_{field['name'].upper()} = {field['offset']}" for field in abi["field"]]
    lines += [f"NPU_{name.upper()} = 0x{value:X}" for name, value in abi["npu"].items()]
    lines += [f"NPU_OFFSET_{field['name'].upper()} = {field['offset']}" for field in abi["npu_control"]]
    for kind, (name, text) in _CLASSES.items():
        base = "IntFlag" if kind in _FLAGS else "IntEnum"
        lines += ["", "", f"class {name}(enum.{base}):", f'    """{text}"""', ""]
        lines += [f"    {each['name']} = {each['value']}" for each in abi[kind]]
    lines += ["", "", "TRANSITIONS: dict[tuple[PageState, str], PageState] = {"]
    lines += [
        f'    (PageState.{move["from"]}, "{move["event"]}"): PageState.{move["to"]},'
        for move in abi["transition"]
    ]
    return "\n".join([*lines, "}", ""])
