/* Who gets what arrives at EL3. */

#include "el3/el3.h"
#include "el3/world.h"
#include "flex_run.h"

#define CLASS_SMC 0x17
#define CLASS_UNKNOWN 0
#define INSTRUCTION_OF_32_BITS (1ULL << 25)

void el3_first(struct frame *frame)
{
	uart_init();
	gic_init();
	gic_init_cpu(0);
	power_booted();
	world_boot();
	modes_boot(frame);
}

void el3_secondary(struct frame *frame, u32 cpu)
{
	gic_init_cpu(cpu);
	power_park(frame, cpu);
}

void el3_unexpected(const struct frame *frame)
{
	panic("an exception that cannot be", frame->elr, read_register("esr_el3"));
}

static bool from_el2(const struct frame *frame)
{
	return (frame->spsr & (SPSR_AARCH32 | SPSR_MODE)) == SPSR_EL2H;
}

/* Calls of EL2: everything the OS does while it is protected comes through it. */
static void serve_el2(struct frame *frame)
{
	switch (frame->x[0]) {
	case PLAT_SMC_BOOTED:
		modes_booted(frame, frame->x[1]);
		break;
	case PLAT_SMC_RING:
		uart_put(FLEX_BYTE_EVENT);
		break;
	case PLAT_SMC_RELAX:
		modes_switch_off(frame);
		break;
	case PLAT_SMC_RUN:
		modes_leave_el2(frame);
		world_run(frame);
		break;
	case PLAT_SMC_END:
		power_end(frame);
		break;
	case PLAT_SMC_PANIC:
		modes_panic(frame);
	default:
		power_serve(frame);
	}
}

/* Calls of the OS while protection is off. */
static void serve_os(struct frame *frame)
{
	u32 function = (u32)frame->x[0];

	if ((function & ~0xffU) != FLEX_SMC_BASE)
		power_serve(frame);
	else if (modes_protection() == PROTECTION_BROKEN)
		frame->x[0] = (u64)FLEX_STATUS_TAMPERED;
	else if (function == FLEX_SMC_BASE + FLEX_CALL_RUN)
		world_run(frame);
	else
		modes_switch_on(frame);
}

/* The OS used a register that is ours, of Group 0 for instance: for it there is no such instruction. */
static void refuse_instruction(struct frame *frame)
{
	write_register("esr_el1", CLASS_UNKNOWN | INSTRUCTION_OF_32_BITS);
	write_register("elr_el1", frame->elr);
	write_register("spsr_el1", frame->spsr);
	frame->elr = read_register("vbar_el1") + ((frame->spsr & SPSR_MODE) == SPSR_EL1H ? 0x200 : 0);
	frame->spsr = SPSR_MASKED | SPSR_EL1H;
}

void el3_smc(struct frame *frame)
{
	bool call = read_register("esr_el3") >> 26 == CLASS_SMC;

	if (call && world_is_secure())
		world_serve(frame);
	else if (call && from_el2(frame))
		serve_el2(frame);
	else if (call)
		serve_os(frame);
	else if (world_is_secure() || from_el2(frame))
		el3_unexpected(frame);
	else
		refuse_instruction(frame);
}

void el3_interrupt(struct frame *frame)
{
	u32 intid = gic_take();

	if (intid == PLAT_SECURE_UART_INTID)
		doorbell_answer();
	if (intid < 1020)
		gic_end(intid);
	world_interrupted(frame, intid); /* first: who ends it may be waited for by who gathers */
	if (intid == GATHER_INTID)
		modes_join(frame);
}
