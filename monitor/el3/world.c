#include "el3/world.h"

#include "el3/el3.h"
#include "el3/secure_os.h"
#include "flex_run.h"

/* While the secure world runs: every interrupt and error comes here, instructions are secure memory's. */
#define SCR_SECURE 0x863e /* 64 bits, IRQ, FIQ, EA, SIF, TERR; not NS, HCE, ST */
#define MDCR_SECURE 0x18640 /* TPM, TDA, TDOSA: no PMU and no debug; SDD, SPD32: no debug exceptions; not SPME */
#define CPTR_SECURE 0x100000 /* TTA: no trace */
#define SCTLR_EL1_START 0x30d00800
#define INTID_OF_OS 1021 /* what the interrupt controller says at EL3 of one that the normal world has to take */

/*
 * What of EL1 and EL0 both worlds have. README.md says of each why, and of the others why not. Translation is set up
 * last, so that nothing is looked up by a mixture of both.
 */
#define SWITCHED(REGISTER)                                                                                   \
	REGISTER(sp_el0) REGISTER(sp_el1) REGISTER(elr_el1) REGISTER(spsr_el1) REGISTER(esr_el1)             \
	REGISTER(far_el1) REGISTER(afsr0_el1) REGISTER(afsr1_el1) REGISTER(par_el1) REGISTER(vbar_el1)       \
	REGISTER(tpidr_el0) REGISTER(tpidrro_el0) REGISTER(tpidr_el1) REGISTER(contextidr_el1)               \
	REGISTER(cpacr_el1) REGISTER(csselr_el1) REGISTER(cntkctl_el1) REGISTER(mdscr_el1)                   \
	REGISTER(pmuserenr_el0) REGISTER(mair_el1) REGISTER(amair_el1) REGISTER(ttbr0_el1)                   \
	REGISTER(ttbr1_el1) REGISTER(tcr_el1) REGISTER(sctlr_el1)

#define ONE_FIELD(name) u64 name;
#define SAVE(name) system->name = read_register(#name);
#define LOAD(name) write_register(#name, system->name);

struct system {
	SWITCHED(ONE_FIELD)
};

/* world.S saves and loads it. */
struct vectors {
	u64 registers[32][2];
	u64 fpcr;
	u64 fpsr;
};

struct context {
	struct frame frame;
	struct system system;
	struct vectors vectors;
};

enum world {
	NORMAL,
	SECURE,
	WORLDS,
};

void vectors_save(struct vectors *vectors);
void vectors_load(const struct vectors *vectors);

static struct context contexts[PLAT_CPUS][WORLDS];
static enum world on[PLAT_CPUS];
static bool yielded[PLAT_CPUS]; /* the secure OS waits for the answer of a YIELD, or begins */
static bool resumed[PLAT_CPUS]; /* this RUN goes on with what was interrupted: nothing was looked for since it began */
static bool exists;
static u32 lent; /* CPUs */
static bool ended; /* for ever */
static u64 why;

bool world_is_secure(void)
{
	return on[this_cpu()] == SECURE;
}

void world_confine(void)
{
	if (!world_is_secure())
		return;
	write_register("scr_el3", SCR_SECURE);
	write_register("mdcr_el3", MDCR_SECURE);
	write_register("cptr_el3", CPTR_SECURE);
	barrier();
}

static void save(struct system *system)
{
	SWITCHED(SAVE)
}

static void load(const struct system *system)
{
	SWITCHED(LOAD)
}

/* Put aside what `frame` and the registers hold, and have this CPU continue in the other world. */
static void enter(enum world world, struct frame *frame)
{
	u32 cpu = this_cpu();
	struct context *left = &contexts[cpu][on[cpu]], *entered = &contexts[cpu][world];

	left->frame = *frame;
	save(&left->system);
	vectors_save(&left->vectors);
	on[cpu] = world;
	if (world == SECURE)
		world_confine();
	else
		modes_confine();
	load(&entered->system);
	vectors_load(&entered->vectors);
	__asm__ volatile("clrex\n\tisb" ::: "memory"); /* a store of one world is never completed by the other */
	*frame = entered->frame;
}

/* ---- the OS's side ---- */

static void answer(struct frame *frame, int status, u64 kind, u64 argument)
{
	frame->x[0] = (u64)status;
	frame->x[1] = kind;
	frame->x[2] = argument;
	frame->x[3] = frame->x[4] = 0;
}

static bool has_ended(void)
{
	return __atomic_load_n(&ended, __ATOMIC_SEQ_CST);
}

/* The secure OS hears what RUN was given only when it asks: who is interrupted has other things in its registers. */
static void tell_run(struct frame *to, const struct frame *run)
{
	to->x[1] = run->x[1];
	to->x[2] = run->x[2];
}

/* It counts as lent before it looks: whoever ends it all either is seen here, or waits for this CPU. */
void world_run(struct frame *frame)
{
	u32 cpu = this_cpu();

	if (!exists) {
		answer(frame, FLEX_STATUS_UNKNOWN, 0, 0);
		return;
	}
	__atomic_fetch_add(&lent, 1, __ATOMIC_SEQ_CST);
	if (has_ended()) {
		__atomic_fetch_sub(&lent, 1, __ATOMIC_SEQ_CST);
		answer(frame, FLEX_STATUS_OK, FLEX_RUN_ENDED, why);
		return;
	}
	if (yielded[cpu])
		tell_run(&contexts[cpu][SECURE].frame, frame);
	resumed[cpu] = !yielded[cpu];
	yielded[cpu] = false;
	enter(SECURE, frame);
}

/* The CPU is the OS's again. */
static void give_back(struct frame *frame, u64 kind, u64 argument)
{
	enter(NORMAL, frame);
	__atomic_fetch_sub(&lent, 1, __ATOMIC_SEQ_CST);
	if (has_ended())
		answer(frame, FLEX_STATUS_OK, FLEX_RUN_ENDED, why);
	else
		answer(frame, FLEX_STATUS_OK, kind, argument);
}

/* An interrupt of ours is served, and the secure world goes on, unless it was ended meanwhile. */
void world_interrupted(struct frame *frame, u32 intid)
{
	if (world_is_secure() && (intid == INTID_OF_OS || has_ended()))
		give_back(frame, FLEX_RUN_INTERRUPTED, 0);
}

void world_end(void)
{
	u32 cpu;

	if (!exists)
		return;
	__atomic_store_n(&ended, true, __ATOMIC_SEQ_CST);
	for (cpu = 0; cpu < PLAT_CPUS; cpu++)
		if (cpu != this_cpu() && power_is_on(cpu))
			gic_gather(cpu);
	while (__atomic_load_n(&lent, __ATOMIC_SEQ_CST) != 0)
		__asm__ volatile("yield");
	scrub(SECURE_OS_RAM, SECURE_OS_RAM_END);
	for (cpu = 0; cpu < PLAT_CPUS; cpu++)
		scrub((u64)&contexts[cpu][SECURE], (u64)&contexts[cpu][WORLDS]);
}

/* ---- the secure OS's side ---- */

/*
 * Who was interrupted on its way to be idle knows nothing of what was said since. The OS, which made RUN after it was said,
 * takes IDLE for an answer to it, and would not lend this CPU again. So it is not believed before it has looked once more.
 */
static bool looks_again(struct frame *frame)
{
	u32 cpu = this_cpu();

	if (!resumed[cpu])
		return false;
	resumed[cpu] = false;
	tell_run(frame, &contexts[cpu][NORMAL].frame);
	return true;
}

static void yield(struct frame *frame)
{
	u64 kind = frame->x[1], argument = frame->x[2];

	if (kind != FLEX_RUN_IDLE && kind != FLEX_RUN_ENDED) {
		frame->x[0] = (u64)FLEX_STATUS_INVALID;
		return;
	}
	if (kind == FLEX_RUN_ENDED && !has_ended()) { /* of two CPUs at once either may say why */
		why = argument;
		__atomic_store_n(&ended, true, __ATOMIC_SEQ_CST);
	}
	frame->x[0] = FLEX_STATUS_OK;
	if (kind == FLEX_RUN_IDLE && looks_again(frame))
		return;
	yielded[this_cpu()] = true;
	give_back(frame, kind, argument);
}

static void tell_protection(struct frame *frame)
{
	struct digest image;
	u32 i;

	frame->x[1] = modes_measure(&image);
	for (i = 0; i < sizeof(image.bytes) / sizeof(u64); i++)
		frame->x[2 + i] = ((const u64 *)image.bytes)[i];
	frame->x[0] = FLEX_STATUS_OK;
}

static void tell_switches(struct frame *frame)
{
	static const enum flex_measured states[] = { FLEX_MEASURED_OFF, FLEX_MEASURED_ON, FLEX_MEASURED_TAMPERED };

	frame->x[0] = FLEX_STATUS_OK;
	frame->x[1] = states[modes_protection()];
	frame->x[2] = modes_switches();
}

void world_serve(struct frame *frame)
{
	switch ((u32)frame->x[0]) {
	case PLAT_SMC_YIELD:
		yield(frame);
		break;
	case PLAT_SMC_DOORBELL:
		gic_pend(FLEX_DOORBELL_INTID);
		frame->x[0] = FLEX_STATUS_OK;
		break;
	case PLAT_SMC_PROTECTION:
		tell_protection(frame);
		break;
	case PLAT_SMC_SWITCHES:
		tell_switches(frame);
		break;
	default:
		frame->x[0] = (u64)FLEX_STATUS_UNKNOWN;
	}
}

void world_boot(void)
{
	u64 entry = register64(SECURE_OS_IMAGE + SECURE_OS_AT_ENTRY);
	u64 bytes = register64(SECURE_OS_IMAGE + SECURE_OS_AT_BYTES);
	u32 cpu;

	exists = register64(SECURE_OS_IMAGE + SECURE_OS_AT_MAGIC) == SECURE_OS_MAGIC;
	if (!exists)
		return;
	if (bytes > SECURE_OS_IMAGE_END - SECURE_OS_IMAGE || entry >= bytes || entry % 4 != 0)
		panic("no such secure OS", SECURE_OS_IMAGE + entry, bytes);
	for (cpu = 0; cpu < PLAT_CPUS; cpu++) {
		struct context *first = &contexts[cpu][SECURE]; /* all else is 0 */

		first->frame.x[0] = cpu;
		first->frame.elr = SECURE_OS_IMAGE + entry;
		first->frame.spsr = SPSR_MASKED | SPSR_EL1H;
		first->system.sctlr_el1 = SCTLR_EL1_START;
		yielded[cpu] = true; /* as if: it hears what its first RUN is given */
	}
}
