// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Memory pressure. Through the shrinker, reclaim sees what is handed over as one more cache: what the
 * secure world has offered already is freed on the spot, and for the rest it is asked, without
 * waiting: a reclaimer that waits for a borrower can be blocked by it. The pages come a few
 * milliseconds later, to the worker or to the next scan.
 *
 * A program that allocates faster than that could still run into the OOM killer, which does not know
 * that memory is on its way. Before it kills it asks a chain of notifiers, and there waiting is
 * allowed, so that is where we wait: for pages, and only as long as some come.
 *
 * Coalescing. One demand is outstanding at a time. The next is sent when what it asked for has come
 * or its deadline has passed. Two CPUs may both find the last one answered; the exchange of `asked`
 * lets one of them send. A demand that finds the ring full is dropped: pressure asks again.
 *
 * How much. An answer takes milliseconds, and a program that fills memory wants much more by then, so
 * demands that follow each other closely double; a page cache that grows slowly is met by small ones.
 */
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/oom.h>
#include <linux/sched/signal.h>
#include <linux/shrinker.h>
#include <linux/swap.h>
#include <linux/vmstat.h>

#include "flexmem.h"

static unsigned int deadline_ms = 100;
module_param(deadline_ms, uint, 0644);
MODULE_PARM_DESC(deadline_ms, "by when the secure world should have given what pressure asks for");

static unsigned int demand_mib = 64;
module_param(demand_mib, uint, 0644);
MODULE_PARM_DESC(demand_mib, "the most that pressure asks for at once, but for what a scan wants");

static unsigned int oom_wait_ms = 2000;
module_param(oom_wait_ms, uint, 0644);
MODULE_PARM_DESC(oom_wait_ms, "how long the OOM killer waits for the secure world at most");

static const unsigned long least = 512; /* pages of a demand: one granule of the secure world */
static const unsigned int close_ms = 500;

static atomic_long_t asked_at;	 /* jiffies of the outstanding demand */
static unsigned long step = 512; /* what the next one asks for at least; a race loses a doubling */
static atomic_long_t held_after; /* what is held when it has been met */

static bool answered(unsigned long asked)
{
	return flex_pool_held() <= atomic_long_read(&held_after) ||
	       time_after(jiffies, asked + msecs_to_jiffies(deadline_ms));
}

static void demand(unsigned long pages)
{
	unsigned long asked = atomic_long_read(&asked_at), held = flex_pool_held();

	if (!held || !answered(asked) || atomic_long_cmpxchg(&asked_at, asked, jiffies) != asked)
		return;
	if (time_after(jiffies, asked + msecs_to_jiffies(close_ms)))
		WRITE_ONCE(step, least);
	else
		WRITE_ONCE(step, min(2 * step, (unsigned long)demand_mib << (20 - PAGE_SHIFT)));
	pages = min(held, max(pages, READ_ONCE(step)));
	atomic_long_set(&held_after, held - pages);
	flex_count(FLEX_COUNT_PRESSURES, 1);
	flex_count(FLEX_COUNT_PRESSURE_PAGES, pages);
	flex_call(FLEX_CALL_PRESSURE, pages, deadline_ms, 0, NULL);
}

static unsigned long count(struct shrinker *shrinker, struct shrink_control *control)
{
	return flex_pool_held();
}

static unsigned long scan(struct shrinker *shrinker, struct shrink_control *control)
{
	unsigned long came;

	/* Taking from the secure world what is being allocated for it helps nobody. */
	if (flex_pool_is_granting())
		return SHRINK_STOP;
	flex_count(FLEX_COUNT_SCANS, 1);
	came = flex_service_reap(control->nr_to_scan);
	if (came < control->nr_to_scan)
		demand(control->nr_to_scan - came);
	/* Else reclaim would not count these pages as progress: they are from no list of its own. */
	if (came && current->reclaim_state)
		current->reclaim_state->reclaimed_slab += came;
	return came ?: SHRINK_STOP;
}

static struct shrinker shrinker = {
	.count_objects = count,
	.scan_objects = scan,
	.seeks = DEFAULT_SEEKS,
	.batch = FLEX_CALL_PAGES_MAX,
};

/* Free pages that came since there were `before`, when they are more than chance. */
static unsigned long grown(unsigned long before)
{
	unsigned long now = global_zone_page_state(NR_FREE_PAGES);

	return now > before + SWAP_CLUSTER_MAX ? now - before : 0;
}

/*
 * Waits for memory, and adds what came to *freed: if that is anything, nobody is killed. Any memory
 * counts, not only ours: what somebody just killed gave up came after the caller looked for the last
 * time, and to say that there was none would have it find nobody left to kill, and panic.
 */
static int on_oom(struct notifier_block *block, unsigned long unused, void *freed)
{
	unsigned long end = jiffies + msecs_to_jiffies(oom_wait_ms), held = flex_pool_held(), came;
	unsigned long free = global_zone_page_state(NR_FREE_PAGES);

	if (!held || flex_pool_is_granting() || fatal_signal_pending(current))
		return NOTIFY_OK;
	flex_count(FLEX_COUNT_OOM_WAITS, 1);
	do {
		demand(held);
		flex_service_reap(ULONG_MAX);
		came = held - min(held, flex_pool_held());
		came = max(came, grown(free));
		if (came)
			break;
		usleep_range(500, 1000);
	} while (time_before(jiffies, end));
	flex_count(FLEX_COUNT_OOM_PAGES, came);
	*(unsigned long *)freed += came;
	return NOTIFY_OK;
}

static struct notifier_block oom = { .notifier_call = on_oom };

int flex_shrinker_init(void)
{
	int error = register_shrinker(&shrinker, "flexmem");

	if (error)
		return error;
	error = register_oom_notifier(&oom);
	if (error)
		unregister_shrinker(&shrinker);
	return error;
}

void flex_shrinker_exit(void)
{
	unregister_oom_notifier(&oom);
	unregister_shrinker(&shrinker);
}
