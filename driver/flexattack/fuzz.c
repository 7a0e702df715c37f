// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * `fuzz smc|hvc ROUNDS SEED`: random calls with hostile arguments; how many had which status. Left
 * out is what a kernel can do to itself and nobody minds: granting its own memory away blindly,
 * returning what its driver has granted, taking the driver's notices, switching the machine off.
 */
#include <linux/mm.h>

#include "flex_run.h"
#include "flexattack.h"

struct dice {
	u64 state;
	u64 ram_base, ram_end, hidden, own;
};

static u64 roll(struct dice *dice, u64 sides)
{
	dice->state ^= dice->state << 13;
	dice->state ^= dice->state >> 7;
	dice->state ^= dice->state << 17;
	return dice->state % sides;
}

static u64 hostile_address(struct dice *dice)
{
	const u64 near[] = { 0,		    dice->ram_base, dice->ram_end, dice->hidden, dice->own,
			     0x08000000UL, 0x09050000UL,   0x0e000000UL,  1UL << 32,	  1UL << 47,
			     1UL << 63,    ~0UL & PAGE_MASK };
	u64 address = near[roll(dice, ARRAY_SIZE(near))] + (roll(dice, 7) - 3) * PAGE_SIZE;

	return roll(dice, 4) ? address : address + roll(dice, PAGE_SIZE);
}

static u64 hostile_count(struct dice *dice)
{
	const u64 near[] = { 0, 1, 1, 1, 2, 3, 511, 512, 513, 1UL << 20, 1UL << 32, 1UL << 52, ~0UL };

	return near[roll(dice, ARRAY_SIZE(near))];
}

static u64 hostile_function(struct dice *dice)
{
	const u64 psci[] = { 0x84000000, 0x84000006, 0x8400000a, 0xc4000003, 0xc4000004, 0xc4000011 };

	switch (roll(dice, 8)) {
	case 0:
		return psci[roll(dice, ARRAY_SIZE(psci))];
	case 1: /* neither of PSCI nor ours */
		return 0x80000000 | (roll(dice, 64) << 24 & ~0x44000000UL) | roll(dice, 1 << 16);
	case 2:
		return FLEX_SMC_BASE + FLEX_CALL_RUN;
	case 3: /* ours, with bits above that do not belong there */
		return (roll(dice, 1 << 16) << 32 | FLEX_SMC_BASE) + roll(dice, 16);
	default:
		return FLEX_SMC_BASE + roll(dice, 16);
	}
}

/* Whether a range call would touch memory that is in use here. */
static bool hurts_ourselves(const struct dice *dice, const struct arm_smccc_1_2_regs *regs)
{
	bool ours = regs->a1 == dice->own && regs->a2 == 1;
	bool in_ram = regs->a1 < dice->hidden && regs->a1 + (regs->a2 << PAGE_SHIFT) > dice->ram_base;

	switch ((u32)regs->a0 - FLEX_SMC_BASE) {
	case FLEX_CALL_GRANT:
	case FLEX_CALL_RETURN:
	case FLEX_CALL_TAKE:
		return in_ram && !ours;
	case FLEX_CALL_POLL:
	case FLEX_CALL_DETACH:
		return true;
	default:
		return false;
	}
}

struct fuzzing {
	struct dice dice;
	bool hvc;
	u64 rounds, done;
	u64 statuses[8]; /* 0, -1 … -6, others */
};

static void fuzz_body(void *argument)
{
	struct fuzzing *fuzzing = argument;
	struct dice *dice = &fuzzing->dice;

	for (; fuzzing->done < fuzzing->rounds; fuzzing->done++) {
		struct raw raw = { .hvc = fuzzing->hvc };
		int status;

		raw.in.a0 = hostile_function(dice);
		raw.in.a1 = hostile_address(dice);
		raw.in.a2 = hostile_count(dice);
		raw.in.a3 = hostile_address(dice);
		if (hurts_ourselves(dice, &raw.in))
			continue;
		call(&raw);
		status = (int)raw.out.a0;
		fuzzing->statuses[status <= 0 && status > -7 ? -status : 7]++;
		if (!(fuzzing->done % 256))
			cond_resched();
	}
}

void fuzz(struct attack *attack)
{
	static const char *const names[] = { "ok",   "unknown",	 "invalid", "denied",
					     "busy", "tampered", "held",    "other" };
	static struct fuzzing fuzzing;
	struct arm_smccc_res ram;

	arm_smccc_smc(FLEX_SMC_BASE + FLEX_CALL_LAYOUT, 0, 0, 0, 0, 0, 0, 0, &ram);
	fuzzing = (struct fuzzing){ .rounds = word(attack, 2) };
	fuzzing.hvc = attack->words[1] && !strcmp(attack->words[1], "hvc");
	fuzzing.dice = (struct dice){ word(attack, 3) | 1, ram.a1, ram.a1 + ram.a2, ram.a3,
				      page_to_phys(victim()) };
	tell(attack, "fault", attempt(fuzz_body, &fuzzing));
	tell(attack, "rounds", fuzzing.done);
	for (int i = 0; i < ARRAY_SIZE(names); i++)
		tell(attack, names[i], fuzzing.statuses[i]);
	smc(FLEX_CALL_RETURN, fuzzing.dice.own, 1);
}
