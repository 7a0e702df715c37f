// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Protection on demand: translating every address twice costs the whole machine some time, so when
 * nothing is handed over for a while, it goes off. The monitor decides whether it may; the next
 * call, whichever it is, switches it on again.
 */
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/workqueue.h>

#include "flexmem.h"

static unsigned int idle_ms = FLEX_IDLE_MS_DEFAULT;
module_param(idle_ms, uint, 0644);
MODULE_PARM_DESC(idle_ms, "protection goes off when nothing is handed over for that long; 0: never");

static void relax(struct work_struct *work)
{
	struct flexmem *fm = container_of(to_delayed_work(work), struct flexmem, relax);

	if (flex_pool_held(fm) || flex_service_attached(fm) || !idle_ms)
		return; /* touched when that changes */
	switch (flex_call(fm, FLEX_CALL_RELAX, 0, 0, 0, NULL)) {
	case FLEX_STATUS_OK:
		flex_count(&fm->counters, FLEX_COUNT_RELAXES, 1);
		break;
	case FLEX_STATUS_BUSY: /* another CPU was in a call, perhaps for a fault only */
		flex_ondemand_touch(fm);
		break;
	}
}

void flex_ondemand_touch(struct flexmem *fm)
{
	mod_delayed_work(system_wq, &fm->relax, msecs_to_jiffies(idle_ms ?: FLEX_IDLE_LOOK_MS));
}

void flex_ondemand_init(struct flexmem *fm)
{
	INIT_DELAYED_WORK(&fm->relax, relax);
	flex_ondemand_touch(fm);
}

void flex_ondemand_exit(struct flexmem *fm)
{
	cancel_delayed_work_sync(&fm->relax);
}
