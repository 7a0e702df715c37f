#!/usr/bin/env python3
"""Make from abi/flex.toml what monitor, driver, secure side and readers use of it.

abi/generate.py            write abi/*.h, src/flexserve/platforms/trustzone/abi.py and docs/abi.md
abi/generate.py --check    exit with 1 and say which of them is not what would be written
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOTE = "Made by abi/generate.py from abi/flex.toml: do not edit."
_NUMBERED = ("state", "status", "call", "notice", "command", "event", "byte")
_MEASURED = (
    "measured",
)  # in a header of their own: a change leaves the one that the proved core reads as it is
_RUN = ("run_answer",)  # for the same reason
_OF_NPU = (
    "npu_state",
    "npu_register",
    "npu_interrupt",
    "npu_mmu_status",
    "npu_mmu_command",
    "npu_target",
    "npu_operand",
    "npu_format",
)

Abi = dict[str, Any]


class AbiError(Exception):
    """flex.toml contradicts itself; the text says where."""


def load(path: Path = ROOT / "abi" / "flex.toml") -> Abi:
    """Read the description. Raises AbiError when it is not consistent."""
    with path.open("rb") as file:
        abi = tomllib.load(file)
    for kind in _NUMBERED + _MEASURED + _RUN + _OF_NPU:
        for each in abi[kind]:
            each.setdefault("value", each.get("number"))
        for field in ("name", "value"):
            given = [each[field] for each in abi[kind]]
            if len(set(given)) != len(given):
                raise AbiError(f"two entries of [[{kind}]] share a {field}")
    states = {state["name"] for state in abi["state"]}
    moves = [(move["from"], move["event"]) for move in abi["transition"]]
    if len(set(moves)) != len(moves):
        raise AbiError("two transitions leave one state by one event")
    for move in abi["transition"]:
        if not {move["from"], move["to"]} <= states:
            raise AbiError(f"transition {move['event']} names an unknown state")
    if abi["run"]["number"] in [call["number"] for call in abi["call"]]:
        raise AbiError("RUN and another call share a number")
    _check_mailbox(abi)
    _end_of_fields(abi["npu_control"])
    return abi


def _end_of_fields(fields: list[dict[str, Any]]) -> int:
    end = 0
    for field in sorted(fields, key=lambda field: field["offset"]):
        if field["offset"] < end or field["offset"] % field["bytes"]:
            raise AbiError(f"field {field['name']} overlaps or is not aligned")
        end = field["offset"] + field["bytes"]
    return end


def _check_mailbox(abi: Abi) -> None:
    if _end_of_fields(abi["field"]) > abi["mailbox"]["header_bytes"]:
        raise AbiError("the mailbox's fields do not fit its header")
    slots = abi["mailbox"]["slots"]
    if slots & (slots - 1):
        raise AbiError("the number of slots is not a power of two")


# ---- C ----------------------------------------------------------------------------------------------


def header(abi: Abi) -> str:
    """Return the C header. Only enums and macros: it compiles in a kernel and without a library."""
    mailbox = abi["mailbox"]
    lines = [f"/* The Flex-Monitor's interface. {NOTE} */", "#ifndef FLEX_ABI_H", "#define FLEX_ABI_H", ""]
    lines += [
        f"#define FLEX_ABI_VERSION {abi['version']}",
        f"#define FLEX_PAGE_BYTES {abi['page_bytes']}",
        f"#define FLEX_CALL_PAGES_MAX {abi['call_pages_max']}",
        f"#define FLEX_SMC_BASE {abi['smc_base']:#x}",
        f"#define FLEX_HIDDEN_BYTES {abi['hidden_bytes']:#x}",
        f"#define FLEX_HIDDEN_STATES {abi['hidden_states']:#x}",
        f"#define FLEX_BOARD_MAGIC {abi['board_magic']:#x}ULL",
        f"#define FLEX_BOARD_OFFSET {abi['board_offset']:#x}",
        f"#define FLEX_DOORBELL_INTID {abi['doorbell_intid']}",
        f"#define FLEX_MAILBOX_MAGIC {mailbox['magic']:#x}ULL",
        "#ifndef FLEX_MAILBOX_SLOTS /* a small one can be asked for by a test */",
        f"#define FLEX_MAILBOX_SLOTS {mailbox['slots']}",
        "#endif",
        f"#define FLEX_MAILBOX_HEADER_BYTES {mailbox['header_bytes']}",
        "#define FLEX_MAILBOX_SLOT_BYTES 32",
    ]
    lines += [f"#define FLEX_AT_{field['name'].upper()} {field['offset']}" for field in abi["field"]]
    lines += [""]
    lines += [f"#define FLEX_NPU_{name.upper()} {value:#x}" for name, value in abi["npu"].items()]
    lines += [
        f"#define FLEX_NPU_AT_{field['name'].upper()} {field['offset']}" for field in abi["npu_control"]
    ]
    lines += ["", "#ifndef __ASSEMBLER__"]
    for kind in _NUMBERED + _OF_NPU:
        lines += ["", f"enum flex_{kind} {{"]
        lines += [_enumerator(kind, each) for each in abi[kind]]
        lines += ["};"]
    lines += ["", "enum flex_move {", *(f"\tFLEX_MOVE_{move['event']}," for move in abi["transition"]), "};"]
    lines += [
        "",
        "/* FLEX_TRANSITION(event, from, to): every legal one. */",
        "#define FLEX_TRANSITIONS(FLEX_TRANSITION) \\",
    ]
    rows = [f"\tFLEX_TRANSITION({m['event']}, {m['from']}, {m['to']})" for m in abi["transition"]]
    lines += [" \\\n".join(rows), "", "#endif", "", "#endif", ""]
    return "\n".join(lines)


def measured_header(abi: Abi) -> str:
    """Return the C header of what EL3 says of EL2."""
    lines = [f"/* What EL3 says of EL2. {NOTE} */", "#ifndef FLEX_MEASURED_H", "#define FLEX_MEASURED_H", ""]
    lines += ["enum flex_measured {", *(_enumerator("measured", each) for each in abi["measured"]), "};"]
    return "\n".join([*lines, "", "#endif", ""])


def run_header(abi: Abi) -> str:
    """Return the C header of RUN. Only macros: assembly includes it, too."""
    lines = [f"/* How the OS lends a CPU. {NOTE} */", "#ifndef FLEX_RUN_H", "#define FLEX_RUN_H", ""]
    lines += [f"#define FLEX_CALL_RUN {abi['run']['number']:#x} /* {abi['run']['success']} */"]
    for each in abi["run_answer"]:
        arguments = f"({', '.join(each['arguments'])}) " if each["arguments"] else ""
        lines += [f"#define FLEX_RUN_{each['name']} {each['value']} /* {arguments}{each['doc']} */"]
    return "\n".join([*lines, "", "#endif", ""])


def _enumerator(kind: str, entry: dict[str, Any]) -> str:
    text = entry.get("doc") or f"({', '.join(entry['arguments'])}) {entry['success']}"
    return f"\tFLEX_{kind.upper()}_{entry['name']} = {entry['value']}, /* {text} */"


# ---- Python -----------------------------------------------------------------------------------------

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


# ---- for readers ------------------------------------------------------------------------------------


def page(abi: Abi) -> str:
    """Return the documentation, in Markdown."""
    mailbox = abi["mailbox"]
    lines = [
        "# The Flex-Monitor's interface",
        "",
        f"{NOTE} Version {abi['version']}.",
        "",
        f"A page is {abi['page_bytes']} bytes. The normal world's kernel calls with SMC, function "
        f"{abi['smc_base']:#x} + number, arguments from x1 on; x0 of the answer is a status. A call names at "
        f"most {abi['call_pages_max']} pages.",
        "",
        "## Page states",
        "```mermaid",
        "stateDiagram-v2",
        "    [*] --> NORMAL",
        *(f"    {m['from']} --> {m['to']}: {m['event']} ({m['by']})" for m in abi["transition"]),
        "```",
        "",
        *_table(("state", "value", "in the normal world's tables", "meaning"), abi["state"], _state_row),
        "A transition that is not in this table is illegal: it is refused and changes nothing.",
        "",
        *_table(
            ("event", "from", "to", "by", "effect"),
            abi["transition"],
            lambda m: (m["event"], m["from"], m["to"], m["by"], m["effect"]),
        ),
        *_related(abi),
        "## Calls of the normal world",
        *_table(("call", "arguments", "results", "needs", "then"), abi["call"], _call_row),
        "A malformed argument gives INVALID, unmet needs give DENIED (BUSY for a full ring, HELD for memory "
        "that is not back); either way nothing was changed.",
        "",
        "## RUN: a CPU is lent to the secure world",
        "EL3 serves this call alone.",
        "",
        *_table(
            ("call", "arguments", "results", "needs", "then"),
            [{"name": "RUN", "value": f"{abi['run']['number']:#x}", **abi["run"]}],
            _call_row,
        ),
        *_table(("answer", "x1", "x2", "meaning"), abi["run_answer"], _message_row),
        "## Statuses",
        *_table(("status", "x0", "meaning"), abi["status"], _plain_row),
        "## Notices (what POLL answers with)",
        *_table(("notice", "kind", "arguments", "meaning"), abi["notice"], _message_row),
        "## Commands of the secure world",
        *_table(("command", "kind", "arguments", "needs", "then"), abi["command"], _command_row),
        "## Events for the secure world",
        *_table(("event", "kind", "arguments", "meaning"), abi["event"], _message_row),
        "## The doorbell",
        *_table(
            ("byte", "value", "sent by", "meaning"),
            abi["byte"],
            lambda b: (b["name"], f"{b['value']:#x}", b["by"], b["doc"]),
        ),
        "## What EL3 says of EL2",
        "65 bytes over the doorbell's wire: what protection is, then the digest, four bits in each byte, "
        "high ones first. Bytes of the doorbell may come between them.",
        "",
        *_table(
            ("byte", "value", "sent by", "meaning"),
            abi["measured"],
            lambda b: (b["name"], f"{b['value']:#x}", b["by"], b["doc"]),
        ),
        "## The mailbox",
        f"The last bytes of RAM: a header of {mailbox['header_bytes']} bytes, then the commands' ring, "
        f"then the events' ring: {mailbox['slots']} slots of 32 bytes each "
        "(kind and three arguments, 8 bytes each, little-endian).",
        "",
        *_table(
            ("field", "offset", "bytes", "written by", ""),
            abi["field"],
            lambda f: (f["name"], f["offset"], f["bytes"], f["writer"], f.get("doc", "")),
        ),
        *_npu(abi),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _npu(abi: Abi) -> list[str]:
    npu = abi["npu"]
    heads = {
        "npu_register": "Registers, by their offset in the window",
        "npu_interrupt": "Bits of INT_RAW",
        "npu_mmu_status": "Bits of MMU_STATUS",
        "npu_mmu_command": "Values of MMU_COMMAND",
        "npu_target": "Targets of a job's commands (target << 48 | value << 16 | register)",
        "npu_operand": "Registers of an operation: C[m, n] = Σ A[m, k] · B[n, k]",
        "npu_format": "Formats",
    }
    lines = [
        "## The NPU",
        f"Its window of {npu['window_bytes']} bytes of registers lies {npu['window_offset']:#x} bytes from "
        f"where hidden memory begins, its control page {npu['control_offset']:#x}. What drives it, at most "
        f"{npu['code_bytes_max']} bytes that need no data and no fixed place, is a function for both worlds: "
        "(registers, npu.start or another wish, list, commands, tables, tag). It answers 0 when it did it.",
        "",
        *_table(("state", "value", "meaning"), abi["npu_state"], _plain_row),
        "The control page:",
        "",
        *_table(
            ("word", "offset", "bytes", "written by", "meaning"),
            abi["npu_control"],
            lambda f: (f["name"], f["offset"], f["bytes"], f["writer"], f["doc"]),
        ),
    ]
    for kind, head in heads.items():
        lines += [f"{head}:", "", *_table(("name", "value", "meaning"), abi[kind], _hexadecimal_row)]
    return lines


def _table(heads: Sequence[str], entries: Sequence[Any], row: Callable[[Any], Sequence[object]]) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return [*lines, *("| " + " | ".join(str(cell) for cell in row(each)) + " |" for each in entries), ""]


def _state_row(state: dict[str, Any]) -> Sequence[object]:
    return state["name"], state["value"], "yes" if state["normal_world"] else "no", state["doc"]


def _call_row(call: dict[str, Any]) -> Sequence[object]:
    listed = (", ".join(call["arguments"]) or "–", ", ".join(call["results"]) or "–")
    return f"{call['name']} ({call['value']})", *listed, call["pre"], call["success"]


def _related(abi: Abi) -> list[str]:
    return [
        "## The same in related interfaces",
        "Four interfaces move pages between owners. This table helps a reader who knows one of the others. "
        "It shows what corresponds, not what is compatible. *Lend*, *relinquish* and *reclaim* are words of "
        "FF-A.",
        "",
        *_table(
            ("here", "FF-A", "pKVM", "Arm CCA"),
            abi["related"],
            lambda row: (row["name"], row["ffa"], row["pkvm"], row["cca"]),
        ),
        "Sources: *Arm Firmware Framework for Arm A-profile* (DEN0077A), chapters on memory management; "
        "Linux, `arch/arm64/kvm/hyp/nvhe/mem_protect.c` (pKVM); *Realm Management Monitor specification* "
        "(DEN0137) and TF-RMM, `runtime/rmi/granule.c`.",
        "",
        "Two differences matter. In FF-A and here the borrower gives memory back itself; in CCA the host may "
        "take it at any time, and the realm loses its contents. In FF-A and pKVM zeroing depends on a flag "
        "or on whose page it was; here the monitor overwrites each page that was SECURE.",
        "",
    ]


def _command_row(command: dict[str, Any]) -> Sequence[object]:
    return (
        command["name"],
        command["value"],
        ", ".join(command["arguments"]),
        command["pre"],
        command["success"],
    )


def _message_row(message: dict[str, Any]) -> Sequence[object]:
    return message["name"], message["value"], ", ".join(message["arguments"]) or "–", message["doc"]


def _plain_row(entry: dict[str, Any]) -> Sequence[object]:
    return entry["name"], entry["value"], entry["doc"]


def _hexadecimal_row(entry: dict[str, Any]) -> Sequence[object]:
    return entry["name"], f"{entry['value']:#x}", entry["doc"]


PRODUCTS: dict[str, Callable[[Abi], str]] = {
    "abi/flex.h": header,
    "abi/flex_measured.h": measured_header,
    "abi/flex_run.h": run_header,
    "src/flexserve/platforms/trustzone/abi.py": python,
    "docs/abi.md": page,
}


def main(arguments: list[str]) -> int:
    """Write or check; return the exit status."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write(f"usage: {__doc__}")
        return 2
    abi = load()
    status = 0
    for name, make in PRODUCTS.items():
        path, text = ROOT / name, make(abi)
        if not arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.stderr.write(f"{name} is not what abi/flex.toml says: run abi/generate.py\n")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
