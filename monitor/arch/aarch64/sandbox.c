#include "arch/aarch64/sandbox.h"

#include "arch/arch.h"
#include "core/layout.h"
#include "core/monitor.h"

#define LINE 64 /* bytes, of the smallest line of a cache */
#define VMID (1ULL << 48) /* another one than the OS's */
#define CLASS_FETCH 0x20
#define RETURN 0 /* where it returns to: nothing is mapped there, so that it faults, and is here again */

#define SCTLR_SANDBOX 0x30d00800 /* as after a reset: stage 1 off, little-endian, what can trap does */

static struct frame suspended;
static u64 suspended_stack;
static u64 suspended_thread;

void arch_copy_code(u64 to, u64 from, u64 bytes)
{
	const u8 *source = (const u8 *)from;
	u64 at;

	for (at = 0; at < bytes; at++)
		((u8 *)to)[at] = source[at];
	for (at = to; at < to + bytes; at += LINE)
		__asm__ volatile("dc cvau, %0" ::"r"(at) : "memory");
	__asm__ volatile("dsb ish\n\tic ialluis\n\tdsb ish\n\tisb" ::: "memory");
}

void arch_sandbox_begin(const u64 arguments[ARCH_ARGUMENTS])
{
	const struct layout *layout = monitor_layout();
	u32 i;

	suspended = (struct frame){ .elr = layout->code };
	suspended.x[30] = RETURN;
	for (i = 0; i < ARCH_ARGUMENTS; i++)
		suspended.x[i] = arguments[i];
	suspended_stack = layout->stack + FLEX_PAGE_BYTES;
	suspended_thread = 0;
}

static _Noreturn void leave(struct frame *frame, enum arch_stop why)
{
	suspended = *frame;
	sandbox_exit(frame, why);
}

void sandbox_interrupted(struct frame *frame)
{
	leave(frame, ARCH_INTERRUPTED);
}

void sandbox_faulted(struct frame *frame)
{
	bool returned = read_register("esr_el2") >> 26 == CLASS_FETCH && frame->elr == RETURN;

	leave(frame, returned ? ARCH_RETURNED : ARCH_FAULTED);
}

/*
 * What of the OS's registers EL0 obeys, sees or can alter: they are put aside while the sandbox runs. README.md says
 * of each of the others why it does not matter.
 */
struct own {
	u64 sctlr; /* order of bytes, what traps */
	u64 tcr; /* whether the top byte of an address counts, stage 1 being off or not */
	u64 mdscr; /* breakpoints, watchpoints, single steps */
	u64 cntkctl; /* whether it may read and set timers */
	u64 pmuserenr; /* … and count events */
	u64 sp;
	u64 tpidr;
	u64 tpidrro;
};

static struct own read_own(void)
{
	return (struct own){
		.sctlr = read_register("sctlr_el1"),
		.tcr = read_register("tcr_el1"),
		.mdscr = read_register("mdscr_el1"),
		.cntkctl = read_register("cntkctl_el1"),
		.pmuserenr = read_register("pmuserenr_el0"),
		.sp = read_register("sp_el0"),
		.tpidr = read_register("tpidr_el0"),
		.tpidrro = read_register("tpidrro_el0"),
	};
}

static void write_own(const struct own *own)
{
	write_register("sctlr_el1", own->sctlr);
	write_register("tcr_el1", own->tcr);
	write_register("mdscr_el1", own->mdscr);
	write_register("cntkctl_el1", own->cntkctl);
	write_register("pmuserenr_el0", own->pmuserenr);
	write_register("sp_el0", own->sp);
	write_register("tpidr_el0", own->tpidr);
	write_register("tpidrro_el0", own->tpidrro);
	barrier();
}

enum arch_stop arch_sandbox_run(u64 *result)
{
	const struct own os = read_own();
	const struct own sandbox = { .sctlr = SCTLR_SANDBOX, .sp = suspended_stack, .tpidr = suspended_thread };
	u64 hcr = read_register("hcr_el2"), vttbr = read_register("vttbr_el2"), stop;

	write_own(&sandbox);
	/* Its tables first, and the OS's last: neither world translates by the other's. */
	write_register("vttbr_el2", monitor_layout()->sandbox | VMID);
	barrier();
	/* QEMU 7.2 needs to be told that stage 1 is off: it does not take it from HCR_SANDBOX. */
	write_register("hcr_el2", HCR_64_BITS | HCR_SANDBOX | HCR_NO_STAGE1 | HCR_STAGE2);
	write_register("cptr_el2", CPTR_EL2 | CPTR_TRAP_FP | CPTR_TRAP_TRACE);
	barrier();
	stop = sandbox_enter(&suspended);
	suspended_stack = read_register("sp_el0");
	suspended_thread = read_register("tpidr_el0");
	write_register("cptr_el2", CPTR_EL2);
	write_register("hcr_el2", hcr);
	barrier();
	write_register("vttbr_el2", vttbr);
	barrier();
	write_own(&os);
	*result = suspended.x[0];
	return (enum arch_stop)stop;
}
