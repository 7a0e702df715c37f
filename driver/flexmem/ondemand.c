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

static unsigned int idle_ms = 10000;
module_param(idle_ms, uint, 0644);
MODULE_PARM_DESC(idle_ms, "protection goes off when nothing is handed over for that long; 0: never");

static void relax(struct work_struct *work);
static DECLARE_DELAYED_WORK(work, relax);

static void relax(struct work_struct *unused)
{
	if (flex_pool_held() || flex_service_attached() || !idle_ms)
		return; /* touched when that changes */
	switch (flex_call(FLEX_CALL_RELAX, 0, 0, 0, NULL)) {
	case FLEX_STATUS_OK:
		flex_count(FLEX_COUNT_RELAXES, 1);
		break;
	case FLEX_STATUS_BUSY: /* another CPU was in a call, perhaps for a fault only */
		flex_ondemand_touch();
		break;
	}
}

void flex_ondemand_touch(void)
{
	mod_delayed_work(system_wq, &work, msecs_to_jiffies(idle_ms ?: 1000));
}

void flex_ondemand_init(void)
{
	flex_ondemand_touch();
}

void flex_ondemand_exit(void)
{
	cancel_delayed_work_sync(&work);
}
