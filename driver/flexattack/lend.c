// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * CPU time for the secure world, lent as no driver would.
 *
 * `run-registers ROUNDS SEED [careless]`: RUN with random values in all registers, and with watchpoints and breakpoints
 * that cover the secure application's memory and code. "altered": registers that were other afterwards, of all rounds,
 * and "first" which (x0 is 0, q0 100, FPCR 200, SP_EL0 300), -1: none. `careless`: as if three had not been put back.
 * `run-storm MS SEED`: on each CPU, RUN with a timer that interrupts after a random while, as short as it can be.
 * `run-nested ROUNDS`: RUN on all CPUs at once, each behind an interrupt of whatever runs there, other RUNs included.
 * `starve CPU MS SEED`: keeps a CPU to itself, but for RUNs that are as short as they can be, each followed by KEPT_MS
 * without one.
 * `count ROUNDS`: cycles that the PMU's counter of events counts: "own" in a loop of ours, "lent" while CPUs are lent,
 * each of a million.
 *
 * They tell "runs", and of these "interrupted", "idle", "ended", "other" (no status of RUN).
 */
#include <linux/delay.h>
#include <linux/interrupt.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <asm/daifflags.h>
#include <asm/neon.h>

#include "flex_run.h"
#include "flexattack.h"

enum { GENERAL = 31, VECTOR_WORDS = 64, SYSTEMS = 17, SYSTEMS_ROOM = 30, STATES = 4 };

/* As registers.S has it. */
struct image {
	u64 x[GENERAL + 1];
	u64 v[VECTOR_WORDS];
	u64 fpcr, fpsr;
	u64 system[SYSTEMS_ROOM];
};

struct bank {
	struct image in, out;
	u64 saved[32], held[32];
};

void call_with_bank(struct bank *bank);
void call_with_bank_carelessly(struct bank *bank);

struct runs {
	u64 runs;
	u64 of[STATES]; /* by what RUN answered; 0: nothing that it could */
};

static u64 random(u64 *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void note(struct runs *runs, u64 status, u64 answer)
{
	runs->runs++;
	runs->of[!status && answer < STATES ? answer : 0]++;
}

static void add(struct runs *all, const struct runs *runs)
{
	all->runs += runs->runs;
	for (int i = 0; i < STATES; i++)
		all->of[i] += runs->of[i];
}

static void tell_runs(struct attack *attack, const struct runs *runs)
{
	static const char *const names[STATES] = { "other", "interrupted", "idle", "ended" };

	tell(attack, "runs", runs->runs);
	for (int i = 0; i < STATES; i++)
		tell(attack, names[i], runs->of[i]);
}

/* RUN for so many ticks of the counter at most. Nothing interrupts us. */
static void run_for(struct runs *runs, u64 ticks)
{
	u64 control = read_sysreg(cntv_ctl_el0), at = read_sysreg(cntv_cval_el0);
	struct arm_smccc_res answer;

	write_sysreg(ticks, cntv_tval_el0);
	write_sysreg(1, cntv_ctl_el0);
	isb();
	arm_smccc_smc(FLEX_SMC_BASE + FLEX_CALL_RUN, 0, 0, 0, 0, 0, 0, 0, &answer);
	write_sysreg(at, cntv_cval_el0);
	write_sysreg(control, cntv_ctl_el0);
	isb();
	note(runs, answer.a0, answer.a1);
}

/* ---- all registers ---- */

static void roll(struct image *in, u64 *dice)
{
	static const u64 masks[SYSTEMS] = {
		~0UL, ~0UL, ~0UL, ~0UL, 0xffffffff, 0xfffffffff001, 0xffffffffffff, 0xffffffff,
		0xffffffffffff, 0xf0000000, 3, 0x3f3, 0xb000, 0xf, 0xfffffffff800, ~0UL, 2, /* the timer's interrupt masked */
	};

	for (int i = 0; i < GENERAL; i++)
		in->x[i] = random(dice);
	for (int i = 0; i < VECTOR_WORDS; i++)
		in->v[i] = random(dice);
	in->fpcr = (1 + random(dice) % 3) << 22;
	in->fpsr = 1 + random(dice) % 31;
	for (int i = 0; i < SYSTEMS; i++)
		in->system[i] = random(dice) & masks[i];
	in->system[12] |= 1 << 15 | 1 << 13; /* MDSCR_EL1: breakpoints and watchpoints, of the kernel's level, too */
	in->x[0] = FLEX_SMC_BASE + FLEX_CALL_RUN;
}

static void differs(bool is, int which, u64 *altered, int *first)
{
	if (is && !(*altered)++)
		*first = which;
}

static void compare(const struct bank *bank, u64 *altered, int *first)
{
	for (int i = 5; i < GENERAL; i++) /* the others answer */
		differs(bank->out.x[i] != bank->in.x[i], i, altered, first);
	for (int i = 0; i < VECTOR_WORDS; i++)
		differs(bank->out.v[i] != bank->in.v[i], 100 + i / 2, altered, first);
	differs(bank->out.fpcr != bank->in.fpcr, 200, altered, first);
	differs(bank->out.fpsr != bank->in.fpsr, 201, altered, first);
	for (int i = 0; i < SYSTEMS; i++)
		differs(bank->out.system[i] != bank->held[i], 300 + i, altered, first);
}

/* All below 2 GiB is watched, at both levels and in both worlds; a breakpoint where the application's code is. */
static void arm_debug(bool on)
{
	write_sysreg(0, oslar_el1);
	write_sysreg(0, dbgwvr0_el1);
	write_sysreg(on ? 0x1f001fff : 0, dbgwcr0_el1);
	write_sysreg(0x400000, dbgbvr0_el1);
	write_sysreg(on ? 0x1e7 : 0, dbgbcr0_el1);
	isb();
}

void run_registers(struct attack *attack)
{
	void (*make)(struct bank *bank) = attack->words[3] ? call_with_bank_carelessly : call_with_bank;
	u64 rounds = clamp_t(u64, word(attack, 1), 1, 100000), dice = word(attack, 2) | 1, altered = 0;
	struct bank *bank = kzalloc(sizeof(*bank), GFP_KERNEL);
	struct runs runs = { 0 };
	unsigned long flags;
	int first = -1;

	if (!bank) {
		attack->error = -ENOMEM;
		return;
	}
	for (u64 i = 0; i < rounds; i++) {
		roll(&bank->in, &dice);
		kernel_neon_begin();
		flags = local_daif_save();
		arm_debug(true);
		make(bank);
		arm_debug(false);
		local_daif_restore(flags);
		kernel_neon_end();
		note(&runs, bank->out.x[0], bank->out.x[1]);
		compare(bank, &altered, &first);
		cond_resched();
	}
	kfree(bank);
	tell_runs(attack, &runs);
	tell(attack, "altered", altered);
	tell(attack, "first", first);
}

/* RUN for a random while: from one that is over on the way in, up to a quarter of a millisecond. */
static void run_a_while(struct runs *runs, u64 *dice)
{
	u64 most = 64UL << random(dice) % 9;
	unsigned long flags;

	local_irq_save(flags);
	run_for(runs, random(dice) % most);
	local_irq_restore(flags);
}

/* ---- interrupted all the time ---- */

struct storming {
	struct runs runs;
	u64 dice;
};

static int storm(void *data)
{
	struct storming *storming = data;

	while (!kthread_should_stop()) {
		run_a_while(&storming->runs, &storming->dice);
		cond_resched();
	}
	return 0;
}

static struct task_struct *start_on(int (*body)(void *), void *data, unsigned int cpu)
{
	struct task_struct *task = kthread_create(body, data, "flexattack/%u", cpu);

	if (IS_ERR(task))
		return NULL;
	kthread_bind(task, cpu);
	wake_up_process(task);
	return task;
}

void run_storm(struct attack *attack)
{
	enum { CPUS = 8 };
	static struct storming storming[CPUS];
	struct task_struct *tasks[CPUS] = { NULL };
	struct runs all = { 0 };
	unsigned int cpu;

	memset(storming, 0, sizeof(storming));
	for_each_online_cpu(cpu)
		if (cpu < CPUS) {
			storming[cpu].dice = (word(attack, 2) + cpu) * 2 + 1;
			tasks[cpu] = start_on(storm, &storming[cpu], cpu);
		}
	msleep(clamp_t(u64, word(attack, 1), 1, 30000));
	for (cpu = 0; cpu < CPUS; cpu++) {
		if (!tasks[cpu])
			continue;
		kthread_stop(tasks[cpu]);
		add(&all, &storming[cpu].runs);
	}
	tell_runs(attack, &all);
}

/* ---- behind an interrupt ---- */

static DEFINE_PER_CPU(struct tasklet_struct, nested);
static DEFINE_PER_CPU(struct runs, nested_runs);

static void run_here(struct tasklet_struct *unused)
{
	unsigned long flags;

	local_irq_save(flags);
	run_for(this_cpu_ptr(&nested_runs), 10000);
	local_irq_restore(flags);
}

static void schedule_here(void *unused)
{
	tasklet_schedule(this_cpu_ptr(&nested));
}

/* Not in the handler itself: until that ends the controller holds other interrupts back, and nothing would end RUN. */
void run_nested(struct attack *attack)
{
	u64 rounds = clamp_t(u64, word(attack, 1), 1, 10000);
	struct runs all = { 0 };
	unsigned int cpu;

	for_each_possible_cpu(cpu) {
		tasklet_setup(&per_cpu(nested, cpu), run_here);
		per_cpu(nested_runs, cpu) = (struct runs){ 0 };
	}
	for (u64 i = 0; i < rounds; i++) {
		on_each_cpu(schedule_here, NULL, 1);
		for_each_possible_cpu(cpu)
			tasklet_kill(&per_cpu(nested, cpu));
	}
	for_each_possible_cpu(cpu)
		add(&all, &per_cpu(nested_runs, cpu));
	tell_runs(attack, &all);
}

/* ---- a CPU for ourselves ---- */

enum { KEPT_MS = 6 };

struct keeping {
	struct runs runs;
	u64 dice, ms;
};

/* The secure world has moments, at whose end it may be anywhere, and stands there each time. */
static int keep_cpu(void *data)
{
	struct keeping *keeping = data;
	u64 end = ktime_get_ns() + keeping->ms * NSEC_PER_MSEC;

	while (ktime_get_ns() < end) {
		run_a_while(&keeping->runs, &keeping->dice);
		preempt_disable();
		mdelay(KEPT_MS);
		preempt_enable();
	}
	while (!kthread_should_stop())
		schedule_timeout_interruptible(1);
	return 0;
}

void starve(struct attack *attack)
{
	struct keeping keeping = { .dice = word(attack, 3) | 1, .ms = clamp_t(u64, word(attack, 2), 1, 10000) };
	unsigned int cpu = word(attack, 1);
	struct task_struct *task;

	attack->error = -EINVAL;
	if (cpu >= nr_cpu_ids || !cpu_online(cpu))
		return;
	task = start_on(keep_cpu, &keeping, cpu);
	if (!task)
		return;
	attack->error = 0;
	sched_set_fifo(task);
	msleep(keeping.ms);
	kthread_stop(task);
	tell_runs(attack, &keeping.runs);
}

/* ---- the PMU ---- */

static u64 counted(void)
{
	isb();
	return read_sysreg(pmevcntr0_el0) & 0xffffffff;
}

void count(struct attack *attack)
{
	u64 rounds = clamp_t(u64, word(attack, 1), 1, 100000), before, began, own = 0, own_ns, lent = 0, lent_ns = 0;
	struct runs runs = { 0 };
	unsigned long flags;

	preempt_disable();
	write_sysreg(0x11, pmevtyper0_el0); /* cycles, as an event */
	write_sysreg(1, pmcntenset_el0);
	write_sysreg(read_sysreg(pmcr_el0) | 1, pmcr_el0);
	before = counted();
	began = ktime_get_ns();
	while (ktime_get_ns() - began < NSEC_PER_MSEC)
		cpu_relax();
	own = (counted() - before) & 0xffffffff;
	own_ns = ktime_get_ns() - began;
	for (u64 i = 0; i < rounds; i++) {
		local_irq_save(flags);
		before = counted();
		began = ktime_get_ns();
		run_for(&runs, 60000);
		lent += (counted() - before) & 0xffffffff;
		lent_ns += ktime_get_ns() - began;
		local_irq_restore(flags);
	}
	write_sysreg(1, pmcntenclr_el0);
	preempt_enable();
	tell_runs(attack, &runs);
	tell(attack, "own", div64_u64(own * 1000000, own_ns));
	tell(attack, "lent", div64_u64(lent * 1000000, lent_ns));
}
