#!/usr/bin/env python3
"""Put faults into the core, one at a time, and see that the tests notice each.

mutants.py OUT TESTS COMPILER FLAG...    TESTS: an object with the world around the core, and its main

A fault that no test notices would show that a law of tests/world.h is not really checked.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from variant import MONITOR, SMALL, Replacement, make

SECONDS = 60  # of CPU time for one run: a fault may also be a loop without end …
LIMIT = 1800  # … or a wait without end: seconds that no run takes, however much else this machine does


@dataclass(frozen=True, slots=True)
class Mutant:
    """A fault, and what `file` must be changed from and to for it."""

    name: str
    file: str
    old: str
    new: str


HIDE = "\ttables_hide(range);\n"
FLUSHES = "\tarch_flush_stage2();\n\tarch_flush_devices();\n\tnpu_forget(FLEX_NPU_STATE_NORMAL);\n"
PUBLISH = "\tpages_move(FLEX_MOVE_GRANT, range);\n"
OK = "\treturn FLEX_STATUS_OK;\n"
TELL = "\tmailbox_event(FLEX_EVENT_GRANTED, call->a[0], call->a[1]);\n"
SCRUB = "\tarch_scrub(call->a[0], range.count);\n"
TAKE = "\tpages_move(FLEX_MOVE_SCRUBBED, range);\n\treturn show(call, range);\n"
STOP = "\t\tif (notices_full() || mailbox_room() == 0)\n"
DENIED = "\n\t\treturn FLEX_STATUS_DENIED;\n"
CHECK_RETURN = f"\tif (!pages_may_sweep(FLEX_MOVE_RETURN, range)){DENIED}"
CHECK_TAKE = f"\tif (!pages_may(FLEX_MOVE_SCRUBBED, range)){DENIED}"
RETURN = "\tpages_sweep(FLEX_MOVE_RETURN, range);\n"
EACH = "\tfor (; at < end; at++)"
MAY = f"{EACH}\n\t\tif (*at != from)\n\t\t\treturn false"
ENDS = "\tif (*at != from || end[-1] != from)\n\t\treturn false;\n"
SWEEP = f"{EACH}\n\t\tif (*at == from)"
MOVE = f"{EACH} {{"
CPUS_HIDDEN = "\tclear(&stage2_leaves[range.first], range.count);\n"
DEVICES_HIDDEN = "\tclear(&device_leaves[range.first], range.count);\n"
CPUS_SHOWN = "\tmap_pages(stage2_leaves, range, STAGE2_RAM);\n"
HELD = "\tif (secure_attached() || npu_is_away() || pages_count(FLEX_STATE_GRANTED) ||"
LEAVE = "leaving.under_way)\n\t\t\tleave_on();\n"
OBEY = "mailbox_command(&command))\n\t\t\tcarry_out(&command);\n"
EVENT_SLOT = "\tvolatile u64 *to = slot(1, event_head);\n"
CALLS, PAGES, TABLES = "core/calls.c", "core/pages.c", "core/tables.c"
MAILBOX, SECURE, MONITOR_C = "core/mailbox.c", "core/secure.c", "core/monitor.c"
NPU = "core/npu.c"
HIDE_REGISTERS = "\ttables_hide_registers();\n\tarch_flush_stage2();\n"
NO_ROOT = "\tarch_npu_root(0);\n\tarch_npu_reset();\n"
ENTER = f"{NO_ROOT}\tload(code, bytes);\n"
LEAVE_NPU = f"{NO_ROOT}\tbecome(FLEX_NPU_STATE_LEAVING);\n"
ZERO = "\tzero_registers();\n"
COPY = "\tarch_copy_code(here->code, code, bytes);\n"
HASH = "\tdigest = sha256(arch_at(here->code), bytes);\n"
CLOSE = "\ttables_close(range);\n\tnpu_forget(FLEX_NPU_STATE_SECURE);\n"
LAST_SCRUB = "\t\t\tarch_scrub(layout.ram_base + page * FLEX_PAGE_BYTES, count);\n"
RECALL = "\tpages_move(FLEX_MOVE_RECALL, range);\n"

MUTANTS = (
    # who can reach a page
    Mutant("a granted page stays mapped", CALLS, HIDE, ""),
    Mutant("no flush of the CPUs", CALLS, "\tarch_flush_stage2();\n", ""),
    Mutant("no flush of the devices", CALLS, "\tarch_flush_devices();\n", ""),
    Mutant("flush before unmapping", CALLS, HIDE + FLUSHES, FLUSHES + HIDE),
    Mutant("publish before unmapping", CALLS, HIDE + FLUSHES + PUBLISH, PUBLISH + HIDE + FLUSHES),
    Mutant("publish before the flush", CALLS, FLUSHES + PUBLISH, PUBLISH + FLUSHES),
    Mutant("tell before the flush", CALLS, FLUSHES + PUBLISH + TELL, TELL + FLUSHES + PUBLISH),
    Mutant("devices keep their mapping", TABLES, DEVICES_HIDDEN, ""),
    Mutant("CPUs keep their mapping", TABLES, CPUS_HIDDEN, ""),
    Mutant("a page too few is hidden", TABLES, CPUS_HIDDEN, CPUS_HIDDEN.replace("count", "count - 1")),
    Mutant("a page too many is hidden", TABLES, CPUS_HIDDEN, CPUS_HIDDEN.replace("count", "count + 1")),
    Mutant(
        "a page too many is shown",
        TABLES,
        CPUS_SHOWN,
        f"\tstruct range more = {{ range.first, range.count + 1 }};\n\n{CPUS_SHOWN.replace('range', 'more')}",
    ),
    Mutant(
        "leaves lead to the page beside",
        TABLES,
        "here->ram_base + range.first * FLEX_PAGE_BYTES",
        "here->ram_base + (range.first ^ 1) * FLEX_PAGE_BYTES",
    ),
    Mutant(
        "the monitor's memory is mapped",
        TABLES,
        "(layout->hidden_base - layout->ram_base) / FLEX_PAGE_BYTES }",
        "layout->pages }",
    ),
    # secrets
    Mutant("no scrub", CALLS, SCRUB, ""),
    Mutant("scrub after showing", CALLS, SCRUB + TAKE, TAKE.replace("return ", "") + SCRUB + OK),
    Mutant(
        "scrub of one page only", CALLS, "arch_scrub(call->a[0], range.count)", "arch_scrub(call->a[0], 1)"
    ),
    Mutant("scrub of what was only granted", CALLS, RETURN, SCRUB + RETURN),
    Mutant(
        "a recalled page goes back by RETURN",
        "flex.h",
        "FLEX_TRANSITION(RETURN, GRANTED, NORMAL)",
        "FLEX_TRANSITION(RETURN, RECALLING, NORMAL)",
    ),
    # who may ask
    Mutant("only the first page is checked", PAGES, MAY, MAY.replace("< end", "== &states[range.first]")),
    Mutant("the last page is not checked", PAGES, MAY, MAY.replace("< end", "< end - (range.count > 1)")),
    Mutant("the last page is not moved", PAGES, MOVE, MOVE.replace("< end", "< end - 1")),
    Mutant("RETURN checks nothing", CALLS, CHECK_RETURN, ""),
    Mutant("RETURN of what the OS has already", PAGES, ENDS, ""),
    Mutant("RETURN forgets a page", PAGES, SWEEP, SWEEP.replace("< end", "< end - 1")),
    Mutant("TAKE checks nothing", CALLS, CHECK_TAKE, ""),
    Mutant(
        "RECALL takes what is only granted",
        "flex.h",
        "FLEX_TRANSITION(RECALL, SECURE, RECALLING)",
        "FLEX_TRANSITION(RECALL, GRANTED, RECALLING)",
    ),
    Mutant("addresses need not be aligned", PAGES, "ipa % FLEX_PAGE_BYTES || pages == 0", "pages == 0"),
    Mutant("no pages are a range", PAGES, "pages == 0 || ", ""),
    Mutant("ranges may run out of RAM", PAGES, " || pages > (end - ipa) / FLEX_PAGE_BYTES", ""),
    Mutant("ranges may start before RAM", PAGES, "ipa < base || ", ""),
    Mutant("ranges may start after RAM", PAGES, "ipa >= end || ", ""),
    Mutant("grants to nobody", CALLS, "\tif (!secure_attached())\n\t\treturn FLEX_STATUS_DENIED;\n", ""),
    Mutant(
        "commands of nobody",
        SECURE,
        "status = attached ? on_pages(command) : FLEX_STATUS_DENIED",
        "status = on_pages(command)",
    ),
    Mutant("two secure worlds", SECURE, "\tif (attached) {", "\tif (false) {"),
    Mutant(
        "whoever is gone stays attached",
        SECURE,
        "\tattached = false;\n\tnpu_leave();",
        "\tnpu_leave();",
    ),
    Mutant("who is gone keeps a page", SECURE, "{ true, command->a, 0 }", "{ true, command->a, 1 }"),
    Mutant(
        "commands while a GONE is under way",
        SECURE,
        f"if ({LEAVE}\t\telse if ({OBEY}",
        f"if ({OBEY}\t\telse if ({LEAVE}",
    ),
    Mutant(
        "protection off while attached",
        CALLS,
        HELD,
        "\tif (npu_is_away() || pages_count(FLEX_STATE_GRANTED) ||",
    ),
    Mutant(
        "protection off while pages are granted", CALLS, HELD, "\tif (secure_attached() || npu_is_away() ||"
    ),
    Mutant("protection off before scrubbing", CALLS, " ||\n\t    pages_count(FLEX_STATE_RECALLING))", ")"),
    # rings, queues, accounts
    Mutant("the secure world's head is believed", MAILBOX, " || waiting > FLEX_MAILBOX_SLOTS", ""),
    Mutant("the secure world's tail is believed", MAILBOX, "used > FLEX_MAILBOX_SLOTS ? 0 : ", ""),
    Mutant("events without room", CALLS, "mailbox_room() > 0 ?", "true ?"),
    Mutant("commands although events have no room", SECURE, STOP, "\t\tif (notices_full())\n"),
    Mutant("commands although notices have no room", SECURE, STOP, "\t\tif (mailbox_room() == 0)\n"),
    Mutant(
        "an event is published before it is written",
        MAILBOX,
        EVENT_SLOT,
        EVENT_SLOT + "\n\t*word(FLEX_AT_EVENT_HEAD) = event_head + 1;\n\tarch_barrier();",
    ),
    Mutant("a command is done twice", MAILBOX, "\tcommand_tail++;\n", ""),
    Mutant("no bell", MAILBOX, "\t\tarch_ring_secure();", "\t\treturn;"),
    Mutant("a bell for nothing", MAILBOX, "\tif (fresh == 0)\n\t\treturn;\n", ""),
    Mutant(
        "a RECALL nobody hears of",
        SECURE,
        "\tnotices_put(FLEX_NOTICE_OFFER, command->a, command->b, 0);\n",
        "",
    ),
    Mutant(
        "POLL does not say that more waits", CALLS, "notice.kind == FLEX_NOTICE_NONE && more", "false && more"
    ),
    Mutant("pages are not counted", PAGES, "\tcounts[to] += range.count;\n", ""),
    Mutant(
        "an access to a granted page is retried",
        MONITOR_C,
        "pages_state(range.first) == FLEX_STATE_NORMAL",
        "pages_state(range.first) <= FLEX_STATE_GRANTED",
    ),
    Mutant(
        "an access to a normal page is blocked",
        MONITOR_C,
        "verdict = MONITOR_RETRY",
        "verdict = MONITOR_BLOCK",
    ),
    Mutant("faults are not counted", MONITOR_C, "\telse\n\t\tmailbox_fault();", ""),
    Mutant("a new start keeps who was attached", MONITOR_C, "\tsecure_init();\n", ""),
    # the NPU: what it reaches
    Mutant(
        "the OS's NPU does not forget what is granted", CALLS, "\tnpu_forget(FLEX_NPU_STATE_NORMAL);\n", ""
    ),
    Mutant("the NPU reaches what is recalled", SECURE, CLOSE, "\tnpu_forget(FLEX_NPU_STATE_SECURE);\n"),
    Mutant("the NPU does not forget what is recalled", SECURE, CLOSE, "\ttables_close(range);\n"),
    Mutant("recalled before the NPU forgets", SECURE, CLOSE + RECALL, RECALL + CLOSE),
    Mutant("the NPU forgets for the wrong world only", NPU, "if (state == user)", "if (state != user)"),
    Mutant("who is gone leaves pages to the NPU", SECURE, "\ttables_close(some);\n", ""),
    Mutant("the NPU stays with who is gone", SECURE, "\tnpu_leave();\n", ""),
    Mutant("committed pages are not opened", SECURE, "\ttables_open(range);\n", ""),
    Mutant(
        "the root is switched before the reset", NPU, ENTER, ENTER.replace("(0)", "(here->secure.level1)")
    ),
    Mutant(
        "the NPU goes back before its reset",
        NPU,
        LEAVE_NPU,
        LEAVE_NPU.replace("(0)", "(here->devices.level1)"),
    ),
    Mutant("no reset on the way there", NPU, ENTER, ENTER.replace("\tarch_npu_reset();\n", "")),
    Mutant("no reset on the way back", NPU, LEAVE_NPU, LEAVE_NPU.replace("\tarch_npu_reset();\n", "")),
    Mutant("the reset is not waited for", NPU, "|| !arch_npu_is_reset()", "|| (arch_npu_is_reset(), false)"),
    # the end of the machine
    Mutant("at the end nothing is overwritten", MONITOR_C, LAST_SCRUB, "\t\t\t;\n"),
    Mutant(
        "at the end one page of several is overwritten",
        MONITOR_C,
        "FLEX_PAGE_BYTES, count);",
        "FLEX_PAGE_BYTES, 1);",
    ),
    Mutant(
        "at the end what is secure is left out", MONITOR_C, "\t\tpages_sweep(FLEX_MOVE_RECALL, some);\n", ""
    ),
    Mutant("at the end the NPU goes on", MONITOR_C, "\tnpu_leave(); /*", "\t/*"),
    Mutant("at the end the NPU's tables stay as they are", MONITOR_C, "\t\ttables_close(some);\n", ""),
    Mutant(
        "at the end a page is left out",
        MONITOR_C,
        "page < layout.pages; page += count",
        "page + 1 < layout.pages; page += count + 1",
    ),
    Mutant(
        "at the end what was recalled is left out",
        MONITOR_C,
        "\t\tif (pages_state(page) == FLEX_STATE_RECALLING)\n",
        "\t\tif (false)\n",
    ),
    Mutant(
        "at the end the lock is given back",
        MONITOR_C,
        LAST_SCRUB + "\t}\n",
        LAST_SCRUB + "\t}\n\tarch_unlock();\n",
    ),
    # the NPU: its registers
    Mutant("registers are not hidden", NPU, HIDE_REGISTERS, "\tarch_flush_stage2();\n"),
    Mutant("registers are known still", NPU, HIDE_REGISTERS, "\ttables_hide_registers();\n"),
    Mutant("registers are hidden after the reset", NPU, HIDE_REGISTERS + ENTER, ENTER + HIDE_REGISTERS),
    Mutant("a page of registers is not hidden", TABLES, "leaf(), WINDOW_PAGES);", "leaf(), 15);"),
    Mutant("registers are not zeroed", NPU, ZERO, ""),
    Mutant("the last register is not zeroed", NPU, "FLEX_NPU_WINDOW_BYTES / sizeof(u64);", "8191;"),
    Mutant(
        "registers do not come back",
        NPU,
        "\ttables_show_registers();\n\tarch_barrier();",
        "\tarch_barrier();",
    ),
    # the NPU: what drives it, and who may ask
    Mutant("code is hashed before it is copied", NPU, COPY + HASH, HASH + COPY),
    Mutant(
        "the OS's code is hashed, not the copy",
        NPU,
        "sha256(arch_at(here->code)",
        "sha256(arch_at(here->stack)",
    ),
    Mutant(
        "code of pages that are not the OS's", NPU, "!wanted || !pages_may(FLEX_MOVE_GRANT, range)", "!wanted"
    ),
    Mutant(
        "only the first page of code is checked", NPU, "(bytes + FLEX_PAGE_BYTES - 1) / FLEX_PAGE_BYTES", "1"
    ),
    Mutant("code of any length", NPU, "bytes > FLEX_NPU_CODE_BYTES_MAX ||\n\t    ", ""),
    Mutant("the NPU is given unasked", NPU, "|| !wanted ||", "||"),
    Mutant("a want outlives its end", NPU, "{\n\twanted = false;\n\tif (state", "{\n\tif (state"),
    Mutant("the sandbox keeps its stack", NPU, "\tarch_scrub(here->stack, 1);\n", ""),
    Mutant(
        "the sandbox keeps its code",
        NPU,
        "\tarch_scrub(here->code, SANDBOX_PAGES);\n\tarch_npu_root",
        "\tarch_npu_root",
    ),
    Mutant("anybody drives the NPU", NPU, "\t\tif (secure)\n", "\t\tif (attached)\n"),
    Mutant("what drives the NPU may take for ever", NPU, " && ++driving.turns < NPU_TURNS_MAX", ""),
    Mutant("commands overtake what drives the NPU", NPU, "\tif (driving.under_way) {", "\tif (false) {"),
    Mutant("protection off while the NPU is away", CALLS, HELD, HELD.replace("npu_is_away() || ", "")),
    Mutant("POLL does not say that the NPU is reset", CALLS, "npu_is_between())", "false)"),
    Mutant("the secure world is not told whose the NPU is", NPU, "\tmailbox_npu_state(next);\n", ""),
    Mutant(
        "a new start keeps the NPU's root",
        NPU,
        "\tarch_npu_root(layout->devices.level1);\n\ttables",
        "\ttables",
    ),
)


def notices(mutant: Mutant, number: int, out: Path, tests: str, compiler: list[str]) -> bool:
    """Build the core with the fault; return whether the tests fail on it."""
    folder = out / str(number)
    make(folder, (*SMALL, Replacement(mutant.file, mutant.old, mutant.new)))
    core = [str(path) for path in (folder / "core").glob("*.c")]
    objects = [str(folder / (Path(source).stem + ".o")) for source in core]
    for source, target in zip(core, objects, strict=True):
        subprocess.run(
            [*compiler, f"-I{folder}", f"-I{MONITOR}", "-w", "-c", source, "-o", target], check=True
        )
    joined, program = str(folder / "core-all.o"), str(folder / "program")
    subprocess.run(
        ["ld", "-r", "-T", str(MONITOR / "tests/core_state.lds"), *objects, "-o", joined], check=True
    )
    subprocess.run([*compiler, tests, joined, "-o", program, "-pthread"], check=True)
    try:
        limited = ["sh", "-c", f'ulimit -t {SECONDS} && exec "$0"', program]
        return subprocess.run(limited, capture_output=True, timeout=LIMIT, check=False).returncode != 0
    except subprocess.TimeoutExpired:
        return True


def main(out: Path, tests: str, compiler: list[str]) -> int:
    """Try every fault; return 1 when one went unnoticed."""
    with ThreadPoolExecutor(2) as pool:
        caught = list(
            pool.map(lambda each: notices(each[1], each[0], out, tests, compiler), enumerate(MUTANTS))
        )
    for mutant, seen in zip(MUTANTS, caught, strict=True):
        if not seen:
            sys.stdout.write(f"nobody noticed: {mutant.name}\n")
    sys.stdout.write(f"{sum(caught)} of {len(MUTANTS)} faults were noticed\n")
    return 0 if all(caught) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
