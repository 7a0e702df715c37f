"""The interface as a page for readers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from description import NOTE, Abi


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
