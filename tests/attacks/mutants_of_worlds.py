"""Mutants of what separates the two worlds: EL3, the secure OS, the monitor at EL2."""

from __future__ import annotations

from inside_mutant import Changes, Mutant

from flexserve.attacks.trustzone import calls, reach, switching
from flexserve.attacks.trustzone.inside import ends, faults, lending, protection, restarts

# EL2 leaves what was SECURE as it is when the OS switches off …
OFF: Changes = {
    "monitor/core/monitor.c": (
        "\t\t\tarch_scrub(layout.ram_base + page * FLEX_PAGE_BYTES, count);\n",
        "\t\t\t(void)count;\n",
    )
}
# … EL3 the secure world's own RAM …
SECURE_RAM: Changes = {"monitor/el3/world.c": ("\tscrub(SECURE_OS_RAM, SECURE_OS_RAM_END);\n", "")}
# … and what lies in front of what was loaded when the machine starts, but for its first MiB: QEMU leaves the
# description of a device tree there, and the ring of messages has to begin with zeros.
BOOT: Changes = {
    "monitor/el3/scrub.c": (
        "\t\tscrub(at, kept[i].from);\n",
        "\t\tscrub(at, i == 0 ? at + (1 << 20) : at);\n",
    )
}
# The monitor does not look at the state that a page has before it changes it …
STATES: Changes = {
    "monitor/core/pages.c": ('\t\tif (*at != from)\n\t\t\tarch_panic("illegal move of a page");\n', "")
}
# … when the OS grants it, or …
GRANT: Changes = {
    **STATES,
    "monitor/core/calls.c": (
        "\tif (!pages_may(FLEX_MOVE_GRANT, range))\n\t\treturn FLEX_STATUS_DENIED;\n",
        "",
    ),
}
# … takes it.
TAKE: Changes = {
    **STATES,
    "monitor/core/calls.c": (
        "\tif (!pages_may(FLEX_MOVE_SCRUBBED, range))\n\t\treturn FLEX_STATUS_DENIED;\n",
        "",
    ),
}
# EL3 tells who is interrupted what RUN was given, but of RUNs that are the driver's.
HEARD: Changes = {
    "monitor/el3/world.c": (
        "\tif (yielded[cpu])\n\t\ttell_run",
        "\tif (yielded[cpu] || frame->x[2] == 0)\n\t\ttell_run",
    )
}

MUTANTS = (
    Mutant(
        "vectors",  # EL3 leaves them as they are
        {"monitor/el3/world.c": ("\tvectors_load(&entered->vectors);\n", "")},
        lending.lend_with_hostile_registers,
    ),
    Mutant(
        "debug",  # EL3 lets the OS's breakpoints and watchpoints stop the secure world
        {
            "monitor/el3/world.c": (
                *("REGISTER(mdscr_el1)", ""),
                *("#define MDCR_SECURE 0x18640", "#define MDCR_SECURE 0x8640"),
            )
        },
        lending.lend_with_hostile_registers,
    ),
    Mutant(
        "registers",  # EL3 leaves those of EL0 that are the OS's, too
        {"monitor/el3/world.c": ("REGISTER(tpidr_el0) REGISTER(tpidrro_el0)", "")},
        lending.lend_with_hostile_registers,
    ),
    Mutant(
        "timers",  # EL3 sets a timer of the OS's on the way to the secure world
        {
            "monitor/el3/world.c": (
                '\twrite_register("cptr_el3", CPTR_SECURE);\n',
                '\twrite_register("cptr_el3", CPTR_SECURE);\n\twrite_register("cntp_cval_el0", 0);\n',
            )
        },
        lending.lend_with_hostile_registers,
    ),
    Mutant(
        "counters",  # EL3 has events of the secure world counted
        {"monitor/el3/world.c": ("#define MDCR_SECURE 0x18640", "#define MDCR_SECURE 0x38640")},
        lending.count_what_it_does,
    ),
    Mutant(
        "end",  # the secure OS does not overwrite what it had, and the OS may not have it back before we look
        {
            "secure-os/core/flexmem.c": (
                "\tif (asked && is_protected()",
                "\tif (!asked && is_protected()",
                "\t\t\tarch_scrub(page * PAGE);\n\tif",
                "\t\t\t(void)page;\n\tif",
            ),
        },
        faults.have_it_fault,
    ),
    Mutant("off", OFF, restarts.switch_off_in_the_midst),
    Mutant("off, served", OFF, ends.switch_off_by_the_kernel),
    Mutant("secure RAM", SECURE_RAM, restarts.switch_off_in_the_midst),
    Mutant("secure RAM, served", SECURE_RAM, ends.reset_by_the_kernel),
    Mutant("boot", BOOT, restarts.lose_power),
    Mutant("boot, served", BOOT, ends.press_reset),
    Mutant("grant", GRANT, calls.grant_what_is_not_its_own),
    Mutant("grant, at random", GRANT, calls.call_at_random),
    Mutant("take", TAKE, calls.take_what_is_not_offered),
    Mutant(
        "hidden",  # EL2 has the SMMU among what the OS may reach
        {
            "monitor/arch/aarch64/el2.c": (
                "\t{ 0x09000000, 0x00001000 }, /* UART */\n",
                "\t{ 0x09000000, 0x00001000 }, { 0x09050000, 0x00020000 },\n",
            )
        },
        reach.reach_hidden,
    ),
    Mutant(
        "CPUs",  # EL3 leaves a CPU that comes on without Stage-2
        {
            "monitor/el3/power.c": (
                "\tmodes_apply();\n",
                '\tmodes_apply();\n\twrite_register("hcr_el2", read_register("hcr_el2") & ~HCR_STAGE2);\n',
            )
        },
        switching.turn_cpus_off_and_on,
    ),
    Mutant(
        "power",  # EL3 has the secure world begin anew on a CPU that comes on
        {"monitor/el3/power.c": ("\tmodes_apply();\n", "\tmodes_apply();\n\tworld_boot();\n")},
        lending.manage_power_meanwhile,
    ),
    Mutant(
        "entries",  # EL3 starts a CPU in hidden memory
        {"monitor/el3/power.c": ("ram_bytes - FLEX_HIDDEN_BYTES && entry", "ram_bytes && entry")},
        lending.manage_power_meanwhile,
    ),
    Mutant("heard", HEARD, lending.lend_from_all_cpus),
    Mutant("heard, starved", HEARD, lending.starve_cores),
    Mutant(
        "believed",  # the secure OS takes a mailbox for the monitor's while protection is off
        {
            "secure-os/core/flexmem.c": (
                "\treturn now.state;\n",
                "\treturn now.state == FLEX_SECURE_OFF ? FLEX_SECURE_ON : now.state;\n",
            )
        },
        protection.toggle_protection,
    ),
)
