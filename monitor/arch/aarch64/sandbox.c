#include "arch/aarch64/sandbox.h"

#include "arch/arch.h"
#include "core/layout.h"
#include "core/monitor.h"

#define LINE 64 /* bytes, of the smallest line of a cache */
#define VMID (1ULL << 48) /* another one than the OS's */
#define CLASS_FETCH 0x20
#define RETURN 0 /* where it returns to: nothing is mapped there, so that it faults, and is here again */

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

#define SCTLR_SANDBOX 0x30d00800 /* as after a reset: stage 1 off, little-endian, what can trap does */

static u64 replace_order(u64 sctlr)
{
	u64 before = read_register("sctlr_el1");

	write_register("sctlr_el1", sctlr);
	__asm__ volatile("isb" ::: "memory");
	return before;
}

/* The OS's registers that govern EL0 or that it can alter are kept here meanwhile; floating point it cannot use. */
enum arch_stop arch_sandbox_run(u64 *result)
{
	u64 hcr = read_register("hcr_el2"), vttbr = read_register("vttbr_el2");
	u64 stack = read_register("sp_el0"), thread = read_register("tpidr_el0"), stop;
	u64 sctlr = replace_order(SCTLR_SANDBOX), step = read_register("mdscr_el1");
	u64 timers = read_register("cntkctl_el1"), counters = read_register("pmuserenr_el0");

	write_register("mdscr_el1", 0);
	write_register("cntkctl_el1", 0);
	write_register("pmuserenr_el0", 0);
	/* Its tables first, and the OS's last: neither world translates by the other's. */
	write_register("vttbr_el2", monitor_layout()->sandbox | VMID);
	barrier();
	/* QEMU 7.2 needs to be told that stage 1 is off: it does not take it from HCR_SANDBOX. */
	write_register("hcr_el2", HCR_64_BITS | HCR_SANDBOX | HCR_NO_STAGE1 | HCR_STAGE2);
	write_register("cptr_el2", CPTR_EL2 | CPTR_TRAP_FP);
	write_register("sp_el0", suspended_stack);
	write_register("tpidr_el0", suspended_thread);
	barrier();
	stop = sandbox_enter(&suspended);
	suspended_stack = read_register("sp_el0");
	suspended_thread = read_register("tpidr_el0");
	write_register("tpidr_el0", thread);
	write_register("sp_el0", stack);
	write_register("cptr_el2", CPTR_EL2);
	write_register("hcr_el2", hcr);
	barrier();
	write_register("vttbr_el2", vttbr);
	write_register("mdscr_el1", step);
	write_register("cntkctl_el1", timers);
	write_register("pmuserenr_el0", counters);
	barrier();
	replace_order(sctlr);
	*result = suspended.x[0];
	return (enum arch_stop)stop;
}
