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

static unsigned int deadline_ms = FLEX_DEADLINE_MS_DEFAULT;
module_param(deadline_ms, uint, 0644);
MODULE_PARM_DESC(deadline_ms, "by when the secure world should have given what pressure asks for");

static unsigned int demand_mib = FLEX_DEMAND_MIB_DEFAULT;
module_param(demand_mib, uint, 0644);
MODULE_PARM_DESC(demand_mib, "the most that pressure asks for at once, but for what a scan wants");

static unsigned int oom_wait_ms = FLEX_OOM_WAIT_MS_DEFAULT;
module_param(oom_wait_ms, uint, 0644);
MODULE_PARM_DESC(oom_wait_ms, "how long the OOM killer waits for the secure world at most");

static bool answered(struct flexmem *fm, unsigned long asked)
{
	return flex_pool_held(fm) <= atomic_long_read(&fm->pressure.held_after) ||
	       time_after(jiffies, asked + msecs_to_jiffies(deadline_ms));
}

static void demand(struct flexmem *fm, unsigned long pages)
{
	struct flex_pressure *pressure = &fm->pressure;
	unsigned long asked = atomic_long_read(&pressure->asked_at), held = flex_pool_held(fm);
	unsigned long most = (unsigned long)demand_mib << (20 - PAGE_SHIFT);

	if (!held || !answered(fm, asked) ||
	    atomic_long_cmpxchg(&pressure->asked_at, asked, jiffies) != asked)
		return;
	if (time_after(jiffies, asked + msecs_to_jiffies(FLEX_EPISODE_MS)))
		WRITE_ONCE(pressure->step, FLEX_DEMAND_PAGES_MIN);
	else
		WRITE_ONCE(pressure->step, min(2 * pressure->step, most));
	pages = min(held, max(pages, READ_ONCE(pressure->step)));
	atomic_long_set(&pressure->held_after, held - pages);
	flex_count(&fm->counters, FLEX_COUNT_PRESSURES, 1);
	flex_count(&fm->counters, FLEX_COUNT_PRESSURE_PAGES, pages);
	flex_ring_demand(fm, pages, deadline_ms);
	flex_call(fm, FLEX_CALL_PRESSURE, pages, deadline_ms, 0, NULL);
}

static unsigned long count(struct shrinker *shrinker, struct shrink_control *control)
{
	return flex_pool_held(container_of(shrinker, struct flexmem, pressure.shrinker));
}

static unsigned long scan(struct shrinker *shrinker, struct shrink_control *control)
{
	struct flexmem *fm = container_of(shrinker, struct flexmem, pressure.shrinker);
	unsigned long came;

	/* Taking from the secure world what is being allocated for it helps nobody. */
	if (flex_blocks_allocating(fm))
		return SHRINK_STOP;
	flex_count(&fm->counters, FLEX_COUNT_SCANS, 1);
	came = flex_service_reap(fm, control->nr_to_scan);
	if (came < control->nr_to_scan)
		demand(fm, control->nr_to_scan - came);
	/* Else reclaim would not count these pages as progress: they are from no list of its own. */
	if (came && current->reclaim_state)
		current->reclaim_state->reclaimed_slab += came;
	return came ?: SHRINK_STOP;
}

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
	struct flexmem *fm = container_of(block, struct flexmem, pressure.oom);
	unsigned long end = jiffies + msecs_to_jiffies(oom_wait_ms), held = flex_pool_held(fm), came;
	unsigned long free = global_zone_page_state(NR_FREE_PAGES);

	if (!held || flex_blocks_allocating(fm) || fatal_signal_pending(current))
		return NOTIFY_OK;
	flex_count(&fm->counters, FLEX_COUNT_OOM_WAITS, 1);
	do {
		demand(fm, held);
		flex_service_reap(fm, ULONG_MAX);
		came = held - min(held, flex_pool_held(fm));
		came = max(came, grown(free));
		if (came)
			break;
		usleep_range(500, 1000);
	} while (time_before(jiffies, end));
	flex_count(&fm->counters, FLEX_COUNT_OOM_PAGES, came);
	*(unsigned long *)freed += came;
	return NOTIFY_OK;
}

int flex_shrinker_init(struct flexmem *fm)
{
	struct flex_pressure *pressure = &fm->pressure;
	int error;

	pressure->step = FLEX_DEMAND_PAGES_MIN;
	pressure->oom.notifier_call = on_oom;
	pressure->shrinker = (struct shrinker){
		.count_objects = count,
		.scan_objects = scan,
		.seeks = DEFAULT_SEEKS,
		.batch = FLEX_CALL_PAGES_MAX,
	};
	error = register_shrinker(&pressure->shrinker, "flexmem");
	if (error)
		return error;
	error = register_oom_notifier(&pressure->oom);
	if (error)
		unregister_shrinker(&pressure->shrinker);
	return error;
}

void flex_shrinker_exit(struct flexmem *fm)
{
	unregister_oom_notifier(&fm->pressure.oom);
	unregister_shrinker(&fm->pressure.shrinker);
}
