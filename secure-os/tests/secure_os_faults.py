"""Faults of the secure OS's core, one at a time, and which proof must notice each."""

from __future__ import annotations

from mutants import Mutant

PAGES, TABLES, AREAS, USER = "core/pages.c", "core/tables.c", "core/areas.c", "core/user.c"
FLEXMEM, MAILBOX, CALLS, FLEX_CALLS = "core/flexmem.c", "core/mailbox.c", "core/calls.c", "core/flex_calls.c"
TWICE = " || pool->free[page / BITS] & bit"
OUT_OF_REACH = "\t\t\t\ttables_protect(at, USE_NONE);\n\tarch_flush();\n"
UNMAP = (
    "\tfor (i = 0; i < count; i++) {\n\t\tpa = tables_unmap(va + i * PAGE);\n"
    "\t\tif (pa == 0)\n\t\t\tcontinue;\n\t\tset_used(pa / PAGE, false);\n\t\tused_pages--;\n\t}\n"
)
FLUSH = "\tarch_flush();\n"
#: Which proof must notice which faults.
NOTICED: dict[str, tuple[Mutant, ...]] = {
    "pages take": (
        Mutant(
            "a page is handed out and stays free",
            PAGES,
            "\tpool->free[page / BITS] &= ~(1ULL << page % BITS);\n",
            "",
        ),
        Mutant("no page is kept for tables", PAGES, "purpose == PAGES_TABLES ? 0 : TABLES_KEPT", "0"),
        Mutant(
            "tables may lie in RAM",
            PAGES,
            "if (purpose == PAGES_PRIVATE && given.left > 0)",
            "if (given.left > 0)",
        ),
    ),
    "pages put": (
        Mutant("a page is freed twice", PAGES, TWICE, ""),
        Mutant(
            "a free page keeps what stood in it", PAGES, "\tarch_scrub(pa);\n\tpool->free", "\tpool->free"
        ),
    ),
    "pages withdraw": (
        Mutant(
            "a page that is used leaves the heap", PAGES, " && given.free[page / BITS] >> page % BITS & 1", ""
        ),
        Mutant("what leaves the heap stays free", PAGES, "extract(&given, page++)", "page++"),
    ),
    "pages start": (
        Mutant("a page more than there is", PAGES, "pa < end; pa += PAGE", "pa <= end; pa += PAGE"),
    ),
    "tables map": (
        Mutant("data can be run", TABLES, "\tif (use != USE_RUN)\n\t\tentry |= NEVER_EL0;\n", ""),
        Mutant("constants can be written", TABLES, "\tif (use != USE_WRITE)\n\t\tentry |= READ_ONLY;\n", ""),
        Mutant("the kernel may run it", TABLES, " | FOR_EL0 | NEVER_EL1", " | FOR_EL0"),
        Mutant("RAM is secure memory", TABLES, "\tif (pa >= RAM_FIRST)\n\t\tentry |= NON_SECURE;\n", ""),
        Mutant("a page is mapped over another", TABLES, "!entry || *entry != 0", "!entry"),
        Mutant(
            "a table for two blocks", TABLES, "(39 - 9 * level)) % ENTRIES", "(39 - 9 * level)) % ENTRIES / 2"
        ),
        Mutant(
            "out of reach is not",
            TABLES,
            "\tif (use != USE_NONE)\n\t\tentry |= VALID;\n",
            "\tentry |= VALID;\n",
        ),
    ),
    "tables unmap": (
        Mutant(
            "what is unmapped stays",
            TABLES,
            "\tpa = *entry & ADDRESS;\n\t*entry = 0;\n",
            "\tpa = *entry & ADDRESS;\n",
        ),
    ),
    "tables reach": (
        Mutant("constants are written by the kernel", TABLES, " || (write && (*entry & READ_ONLY))", ""),
        Mutant("what is out of reach is reached", TABLES, "!(*entry & VALID) || (write", "(write"),
        Mutant("addresses wrap", TABLES, "\tif (va >= ADDRESSES_END)\n\t\treturn NULL;\n", ""),
    ),
    "areas private": (
        Mutant("pieces lie upon each other", AREAS, " || (at < count && areas[at].start < va + bytes)", ""),
        Mutant(
            "more is promised than there is", AREAS, "pages_left(PAGES_PRIVATE) >= pages + tables", "true"
        ),
    ),
    "areas protect": (
        Mutant("no flush after a change", AREAS, "\tjoin();\n\tarch_flush();\n", "\tjoin();\n"),
        Mutant(
            "a new page where one is",
            AREAS,
            "if (tables_page(at) != 0)\n\t\t\ttables_protect(at, use);\n\t\telse if",
            "if",
        ),
        Mutant("too many pieces", AREAS, " + (last && last->start < end) <= AREAS_MAX", " <= AREAS_MAX"),
    ),
    "areas free": (
        Mutant(
            "no flush before a page is free",
            AREAS,
            OUT_OF_REACH,
            OUT_OF_REACH.replace("\tarch_flush();\n", ""),
        ),
        Mutant("a page is free and stays mapped", AREAS, "pa = tables_unmap(at);", "pa = tables_page(at);"),
        Mutant(
            "chunks are the heap's",
            AREAS,
            "area->kind == AREA_CHUNKS && missing(va, end) == (end - va) / PAGE",
            "area->kind == AREA_CHUNKS",
        ),
    ),
    "flexmem map": (
        Mutant("any page is mapped", FLEXMEM, "return secure && is_protected()", "return is_protected()"),
        Mutant(
            "it is read before protection is known",
            FLEXMEM,
            "any_used(page, count) || !is_protected()",
            "any_used(page, count)",
        ),
        Mutant(
            "nobody looks whether it was switched",
            FLEXMEM,
            "secure && is_protected() && switches == before ?",
            "secure ?",
        ),
        Mutant(
            "only that it is on is looked at",
            FLEXMEM,
            "is_protected() && switches == before ? 0",
            "is_protected() ? 0",
        ),
        Mutant(
            "a RECALL may be under way", FLEXMEM, "\tif (!mailbox_settled())\n\t\treturn ERROR_AGAIN;\n", ""
        ),
        Mutant(
            "a page is mapped twice", FLEXMEM, "any_used(page, count) || !is_protected()", "!is_protected()"
        ),
        Mutant(
            "only some pages are looked at",
            FLEXMEM,
            "for (i = 0; i < count; i++)\n\t\tsecure",
            "for (i = 0; i + 1 < count; i++)\n\t\tsecure",
        ),
        Mutant(
            "pages that are none",
            FLEXMEM,
            "page >= ram_first && page < ram_end && count <= ram_end - page",
            "page >= ram_first",
        ),
    ),
    "flexmem give": (
        Mutant(
            "what is given is not marked",
            FLEXMEM,
            "\t\tset_used(page + i, true);\n\t\tpages_give",
            "\t\tpages_give",
        ),
    ),
    "flexmem unmap": (
        Mutant("no flush", FLEXMEM, "\t\tused_pages--;\n\t}\n\tarch_flush();\n", "\t\tused_pages--;\n\t}\n"),
        Mutant(
            "flushed before it is unmapped",
            FLEXMEM,
            UNMAP + FLUSH,
            FLUSH + UNMAP,
        ),
        Mutant(
            "unmapped and not counted",
            FLEXMEM,
            "\t\tset_used(pa / PAGE, false);\n\t\tused_pages--;\n",
            "\t\tset_used(pa / PAGE, false);\n",
        ),
    ),
    "flexmem command": (
        Mutant(
            "what is used may be recalled",
            FLEXMEM,
            "return any_used(command->a / PAGE, command->b) ? ERROR_BUSY : 0;",
            "return 0;",
        ),
        Mutant(
            "who leaves may use something", FLEXMEM, "return used_pages == 0 ? 0 : ERROR_BUSY;", "return 0;"
        ),
        Mutant(
            "the NPU is asked for",
            FLEXMEM,
            "\tdefault:\n\t\treturn ERROR_INVAL;\n\t}\n}\n\ns64 flexmem_command",
            "\tdefault:\n\t\treturn 0;\n\t}\n}\n\ns64 flexmem_command",
        ),
    ),
    "flexmem event": (
        Mutant(
            "an event of anybody",
            FLEXMEM,
            "\treturn mailbox_take(event) && is_protected() && switches == before ? 1 : 0;",
            "\treturn mailbox_take(event) && (before || !before) ? 1 : 0;",
        ),
    ),
    "flexmem ring": (
        Mutant(
            "a ring over what is used",
            FLEXMEM,
            " || any_used(page, pages))\n\t\treturn ERROR_NOENT",
            ")\n\t\treturn ERROR_NOENT",
        ),
    ),
    "flexmem take": (
        Mutant(
            "what leaves the heap counts as used",
            FLEXMEM,
            "\t\tset_used(*page + i, false);\n\tused_pages -= count;",
            "\t\t;\n\tused_pages -= count;",
        ),
    ),
    "flexmem end": (
        Mutant("nothing is overwritten", FLEXMEM, "\t\t\tarch_scrub(page * PAGE);\n", "\t\t\t;\n"),
    ),
    "user": (
        Mutant(
            "the end may wrap",
            USER,
            "\tu8 *at = to;\n\tu64 some, pa;\n\n\tif (va >= ADDRESSES_END || bytes > ADDRESSES_END - va)",
            "\tu8 *at = to;\n\tu64 some, pa;\n\n\tif (va + bytes > ADDRESSES_END)",
        ),
        Mutant("constants are written", USER, "pa = tables_reach(va, true)", "pa = tables_reach(va, false)"),
        Mutant(
            "a copy runs on behind the page",
            USER,
            "return rest < bytes ? rest : bytes;",
            "return bytes + 0 * rest;",
        ),
    ),
    "mailbox settled": (
        Mutant("a GONE counts as ended when it was begun", MAILBOX, "left + gone <=", "left <="),
        Mutant("what waits is looked at, not which", MAILBOX, "command_head - last_leaving", "command_head"),
    ),
    "mailbox reset": (
        Mutant(
            "the rings are empty", MAILBOX, "command_head = *word(FLEX_AT_COMMAND_HEAD)", "command_head = 0"
        ),
        Mutant("nonsense is believed", MAILBOX, "if (waiting() > FLEX_MAILBOX_SLOTS)", "if (false)"),
    ),
    "mailbox moves": (
        Mutant("a RECALL is not kept in mind", MAILBOX, "\t\tleaving = true;\n", ""),
        Mutant("a slot beside the one meant", MAILBOX, "slot(0, command_head)", "slot(0, command_head + 1)"),
        Mutant(
            "events are put where commands are",
            MAILBOX,
            "*word(FLEX_AT_EVENT_TAIL) = ++event_tail",
            "*word(FLEX_AT_COMMAND_HEAD) = ++event_tail",
        ),
        Mutant("slots do not wrap", MAILBOX, "count % FLEX_MAILBOX_SLOTS)", "count)"),
    ),
    "calls": (
        Mutant(
            "memory may be run",
            CALLS,
            "\treturn (protection & ~(u64)(PROTECT_READ | PROTECT_WRITE)) == 0;",
            "\tif (protection & 4)\n\t\t*use = USE_RUN;\n\treturn true;",
        ),
        Mutant("a range may wrap", CALLS, " && va < ADDRESSES_END && bytes <= ADDRESSES_END - va;", ";"),
        Mutant(
            "more is read than there is room for",
            CALLS,
            "\tif (bytes > WRITE_BYTES_MAX)\n\t\tbytes = WRITE_BYTES_MAX;\n\tif (!user_read",
            "\tif (!user_read",
        ),
        Mutant("brk goes anywhere", CALLS, "wanted < data_end || wanted > IMAGE_END", "wanted < data_end"),
        Mutant(
            "the secret is gone before it was told",
            FLEX_CALLS,
            "\tif (!user_write(va, secret, SECRET_BYTES))\n\t\treturn ERROR_FAULT;\n\tsecret = NULL;",
            "\tconst u8 *told = secret;\n\n\tsecret = NULL;\n"
            "\tif (!user_write(va, told, SECRET_BYTES))\n\t\treturn ERROR_FAULT;",
        ),
        Mutant(
            "the caller says where the ring is",
            FLEX_CALLS,
            "flexmem_ring(last_said.ring_page, last_said.ring_pages,",
            "flexmem_ring(to_address, last_said.ring_pages,",
        ),
    ),
}
