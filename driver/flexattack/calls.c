// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * `smc X0 X1 …`, `hvc X0 X1 …`: one call with these registers; "x0" … "x4"; "fault" -14 when it killed
 * the thread.
 *
 * `fuzz smc|hvc ROUNDS SEED`: random calls with hostile arguments; how many had which status. Left
 * out is what a kernel can do to itself and nobody minds: granting its own memory away blindly,
 * returning what its driver has granted, taking the driver's notices, switching the machine off.
 *
 * `cost CALL ROUNDS PAGES`: "ns" of one call on average: CALL is `empty` (an unknown one), `version`,
 * or `grant` (then "return_ns", too: each round grants and returns pages of our own), or `protect`
 * ("off_ns", "on_ns": each round switches protection off and on).
 */
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/timekeeping.h>

#include "flexattack.h"

struct raw {
	struct arm_smccc_1_2_regs in, out;
	bool hvc;
};

static void call(void *argument)
{
	struct raw *raw = argument;

	if (raw->hvc)
		arm_smccc_1_2_hvc(&raw->in, &raw->out);
	else
		arm_smccc_1_2_smc(&raw->in, &raw->out);
}

static void raw_call(struct attack *attack, bool hvc)
{
	static struct raw raw; /* the thread may outlive us */

	raw = (struct raw){ .hvc = hvc };
	raw.in.a0 = word(attack, 1);
	raw.in.a1 = word(attack, 2);
	raw.in.a2 = word(attack, 3);
	raw.in.a3 = word(attack, 4);
	raw.in.a4 = word(attack, 5);
	raw.in.a5 = word(attack, 6);
	raw.in.a6 = word(attack, 7);
	raw.in.a7 = word(attack, 8);
	tell(attack, "fault", attempt(call, &raw));
	tell(attack, "x0", raw.out.a0);
	tell(attack, "x1", raw.out.a1);
	tell(attack, "x2", raw.out.a2);
	tell(attack, "x3", raw.out.a3);
	tell(attack, "x4", raw.out.a4);
}

void raw_smc(struct attack *attack)
{
	raw_call(attack, false);
}

void raw_hvc(struct attack *attack)
{
	raw_call(attack, true);
}

/* ---- random calls ---- */

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
	case 2: /* ours, with bits above that do not belong there */
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

/* ---- what calls cost ---- */

static void cost_of_grant(struct attack *attack, u64 rounds, u64 pages)
{
	struct page *block = alloc_pages(GFP_KERNEL, get_order(pages * PAGE_SIZE));
	u64 grant = 0, give = 0, start, middle;
	int status = 0;

	if (!block) {
		attack->error = -ENOMEM;
		return;
	}
	for (u64 i = 0; i < rounds && !status; i++) {
		start = ktime_get_ns();
		status = smc(FLEX_CALL_GRANT, page_to_phys(block), pages);
		middle = ktime_get_ns();
		status = status ?: smc(FLEX_CALL_RETURN, page_to_phys(block), pages);
		grant += middle - start;
		give += ktime_get_ns() - middle;
	}
	tell(attack, "status", status);
	tell(attack, "ns", div64_u64(grant, rounds));
	tell(attack, "return_ns", div64_u64(give, rounds));
	if (!status) /* else it may be granted still: never to be freed */
		__free_pages(block, get_order(pages * PAGE_SIZE));
}

static void cost_of_protection(struct attack *attack, u64 rounds)
{
	u64 off = 0, on = 0, start, middle;
	int status = 0;

	for (u64 i = 0; i < rounds && !status; i++) {
		start = ktime_get_ns();
		status = smc(FLEX_CALL_RELAX, 0, 0);
		middle = ktime_get_ns();
		status = status ?: smc(FLEX_CALL_VERSION, 0, 0);
		off += middle - start;
		on += ktime_get_ns() - middle;
	}
	tell(attack, "status", status);
	tell(attack, "off_ns", div64_u64(off, rounds));
	tell(attack, "on_ns", div64_u64(on, rounds));
}

void cost(struct attack *attack)
{
	const char *what = attack->words[1] ?: "";
	u64 rounds = clamp_t(u64, word(attack, 2), 1, 1000000), pages = clamp_t(u64, word(attack, 3), 1, 512);
	u64 number = !strcmp(what, "version") ? FLEX_CALL_VERSION : 0xff, start;

	if (!strcmp(what, "grant"))
		return cost_of_grant(attack, rounds, pages);
	if (!strcmp(what, "protect"))
		return cost_of_protection(attack, rounds);
	start = ktime_get_ns();
	for (u64 i = 0; i < rounds; i++)
		smc(number, 0, 0);
	tell(attack, "ns", div64_u64(ktime_get_ns() - start, rounds));
}
