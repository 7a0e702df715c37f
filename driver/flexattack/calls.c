// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * `smc X0 X1 …`, `hvc X0 X1 …`: one call with these registers; "x0" … "x4"; "fault" -14 when it killed
 * the thread.
 *
 * `find STATE [SKIP]`: a run of pages in that state, after SKIP others: "ipa" and "pages", 0 for none.
 *
 * `cost CALL ROUNDS PAGES`: "ns" of one call on average: CALL is `empty` (an unknown one), `version`,
 * `run` (until an idle secure world gives the CPU back; the driver lends none meanwhile), or `grant` (then
 * "return_ns", too: each round grants and returns pages of our own), or `protect` ("off_ns", "on_ns": each
 * round switches protection off and on).
 */
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/timekeeping.h>

#include "flex_run.h"
#include "flexattack.h"

void call(void *argument)
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

void find(struct attack *attack)
{
	struct arm_smccc_1_2_regs in = { .a0 = FLEX_SMC_BASE + FLEX_CALL_LAYOUT }, out;
	u64 wanted = word(attack, 1), skip = word(attack, 2), at, end, pages = 0;

	arm_smccc_1_2_smc(&in, &out);
	end = out.a1 + out.a2;
	for (at = out.a1; at < end; at += pages * PAGE_SIZE) {
		in.a0 = FLEX_SMC_BASE + FLEX_CALL_STATE;
		in.a1 = at;
		arm_smccc_1_2_smc(&in, &out);
		if (out.a0)
			break;
		pages = out.a2;
		if (out.a1 == wanted && !skip--)
			break;
	}
	tell(attack, "ipa", at < end && !out.a0 ? at : 0);
	tell(attack, "pages", at < end && !out.a0 ? pages : 0);
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
	u64 number = !strcmp(what, "version") ? FLEX_CALL_VERSION : !strcmp(what, "run") ? FLEX_CALL_RUN : 0xff, start;

	if (!strcmp(what, "grant"))
		return cost_of_grant(attack, rounds, pages);
	if (!strcmp(what, "protect"))
		return cost_of_protection(attack, rounds);
	start = ktime_get_ns();
	for (u64 i = 0; i < rounds; i++)
		smc(number, 0, 0);
	tell(attack, "ns", div64_u64(ktime_get_ns() - start, rounds));
}
