"""The interface as C headers."""

from __future__ import annotations

from typing import Any

from description import NOTE, NUMBERED, OF_NPU, Abi


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
    for kind in NUMBERED + OF_NPU:
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
