// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The NPU to the secure world and back. Whose turn it is, is decided here and there, never by the
 * monitor, which only sees to it that who has it has it alone.
 *
 *   ours ── NPU_WANTED, and our slice is over or nothing is queued ──▶ NPU_GRANT ──▶ theirs
 *   theirs ── NPU_BACK, and NPU_STATE says NORMAL ──▶ ours
 *
 * Shares. When both want it we keep it for `slice_ms` after it came back, and then until the running
 * job ends, `drain_ms` at most; so the secure world waits for slice_ms + drain_ms. It owes us the same:
 * as soon as a job waits it is asked to give the NPU back within `ask_ms`. A side that has nothing to
 * do takes nothing from the other: an empty queue hands over at once, and nobody asks for an idle NPU.
 *
 * Progress. A job that was cut off runs again, with twice the time before it can be cut off once more.
 *
 * The race that matters: registers against NPU_GRANT, which takes them out of our reach, so that an
 * access after it faults. Both are made by one thread, the runner's, and `ours`, which is false from
 * before that call until it fails, having changed nothing, or until NPU_STATE says NORMAL again, is
 * written by it alone. What others do is to set a flag and to wake it: the monitor's notices (heard
 * under flexmem's lock, perhaps by who reclaims memory, so they may not wait) and debugfs. A notice is
 * a hint and may be stale: for WANTED of a secure world that died, NPU_GRANT is denied, and BACK is
 * believed when NPU_STATE says so.
 *
 * A job that was cut off keeps its memory pinned until the NPU has been reset: until then it is neither
 * theirs nor ours (ENTERING or LEAVING), for as long as the NPU takes, and flexmem's POLLs go on.
 *
 * While it is theirs this module is in use, for its core's bytes and for whoever waits; so it cannot be
 * unloaded before debugfs' `detach` got the NPU back.
 */
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/module.h>

#include "../flexmem/exported.h"
#include "flexnpu.h"

static unsigned int slice_ms = 20;
module_param(slice_ms, uint, 0644);
MODULE_PARM_DESC(slice_ms, "how long this world keeps the NPU when both have work for it");

static unsigned int drain_ms = 50;
module_param(drain_ms, uint, 0644);
MODULE_PARM_DESC(drain_ms, "how long a running job may then still take before it is cut off");

static unsigned int ask_ms = 50;
module_param(ask_ms, uint, 0644);
MODULE_PARM_DESC(ask_ms, "by when the secure world should give the NPU back, when jobs wait");

static enum flex_npu_state state(struct flexnpu *npu)
{
	struct flex_results results;

	if (flex_call(npu->handover.flexmem, FLEX_CALL_NPU_STATE, 0, 0, 0, &results))
		return FLEX_NPU_STATE_ABSENT;
	return results.x[0];
}

/* ---- to them ---- */

static bool is_wanted(struct flexnpu *npu)
{
	return smp_load_acquire(&npu->handover.wanted) && !READ_ONCE(npu->handover.closing);
}

/* When the NPU should be theirs, once it is wanted. */
static u64 leave_at(struct flexnpu *npu)
{
	return max(READ_ONCE(npu->handover.wanted_at), npu->handover.since + (u64)slice_ms * NSEC_PER_MSEC);
}

static bool should_give(struct flexnpu *npu)
{
	return is_wanted(npu) && (!flexnpu_jobs_waiting(npu) || ktime_get_ns() >= leave_at(npu));
}

static bool is_on_its_way(struct flexnpu *npu)
{
	enum flex_npu_state now = state(npu);

	return now == FLEX_NPU_STATE_ENTERING || now == FLEX_NPU_STATE_LEAVING;
}

/* Whether it is not ours any more, and whatever ran has been stopped. */
static bool give(struct flexnpu *npu)
{
	u64 began = ktime_get_ns();
	int status;

	WRITE_ONCE(npu->handover.wanted, false); /* first: what is wanted from now on is another time */
	if (!try_module_get(THIS_MODULE))
		return false; /* it is being unloaded */
	WRITE_ONCE(npu->handover.ours, false);
	status = flex_call(npu->handover.flexmem, FLEX_CALL_NPU_GRANT, npu->handover.code,
			   npu->handover.code_bytes, 0, NULL);
	if (status != FLEX_STATUS_OK) {
		WRITE_ONCE(npu->handover.ours, true);
		module_put(THIS_MODULE);
		if (status == FLEX_STATUS_BUSY) {
			WRITE_ONCE(npu->handover.wanted, true);
			usleep_range(50, 100);
		}
		return false;
	}
	flex_service_kick(npu->handover.flexmem);
	while (is_on_its_way(npu))
		usleep_range(50, 100);
	npu->handover.since = ktime_get_ns();
	npu->handover.asked = get_jiffies_64() - msecs_to_jiffies(ask_ms);
	flexnpu_count(npu, FLEXNPU_COUNT_GRANTS, 1);
	flexnpu_count(npu, FLEXNPU_COUNT_GRANT_NS, npu->handover.since - began);
	return true;
}

bool flexnpu_handover_cut(struct flexnpu *npu, const struct flexnpu_job *job)
{
	u64 drain = (u64)drain_ms * NSEC_PER_MSEC << job->interrupted;

	return is_wanted(npu) && ktime_get_ns() >= leave_at(npu) + drain && give(npu);
}

/* ---- to us ---- */

static bool should_ask(struct flexnpu *npu)
{
	return (flexnpu_jobs_waiting(npu) || READ_ONCE(npu->handover.closing)) &&
	       time_after_eq64(get_jiffies_64(), npu->handover.asked + msecs_to_jiffies(ask_ms));
}

static void ask(struct flexnpu *npu)
{
	npu->handover.asked = get_jiffies_64();
	flexnpu_count(npu, FLEXNPU_COUNT_ASKS, 1);
	flex_call(npu->handover.flexmem, FLEX_CALL_NPU_ASK, ask_ms, 0, 0, NULL);
}

static void take_back(struct flexnpu *npu)
{
	u64 now = ktime_get_ns();

	flexnpu_count(npu, FLEXNPU_COUNT_BACKS, 1);
	flexnpu_count(npu, FLEXNPU_COUNT_AWAY_NS, now - npu->handover.since);
	npu->handover.since = now;
	WRITE_ONCE(npu->handover.ours, true);
	module_put(THIS_MODULE);
}

/* ---- for the runner ---- */

bool flexnpu_handover_ours(struct flexnpu *npu)
{
	return READ_ONCE(npu->handover.ours);
}

bool flexnpu_handover_due(struct flexnpu *npu)
{
	return npu->handover.ours ? should_give(npu) : READ_ONCE(npu->handover.back) || should_ask(npu);
}

long flexnpu_handover_patience(struct flexnpu *npu)
{
	bool asking = !npu->handover.ours && (flexnpu_jobs_waiting(npu) || READ_ONCE(npu->handover.closing));

	return asking ? max(msecs_to_jiffies(ask_ms), 1UL) : MAX_SCHEDULE_TIMEOUT;
}

void flexnpu_handover_step(struct flexnpu *npu)
{
	if (npu->handover.ours) {
		if (should_give(npu))
			give(npu);
	} else if (xchg(&npu->handover.back, false) && state(npu) == FLEX_NPU_STATE_NORMAL) {
		take_back(npu);
	} else if (should_ask(npu)) {
		ask(npu);
	}
}

/* ---- for others ---- */

static void hear(void *data, const struct flex_results *notice)
{
	struct flexnpu *npu = data;

	switch (notice->x[0]) {
	case FLEX_NOTICE_NPU_WANTED:
		flexnpu_count(npu, FLEXNPU_COUNT_WANTS, 1);
		if (READ_ONCE(npu->handover.wanted))
			break; /* it waits since then */
		WRITE_ONCE(npu->handover.wanted_at, ktime_get_ns());
		smp_store_release(&npu->handover.wanted, true);
		flexnpu_runner_kick(npu);
		break;
	case FLEX_NOTICE_NPU_BACK:
		WRITE_ONCE(npu->handover.back, true);
		flexnpu_runner_kick(npu);
		break;
	}
}

int flexnpu_handover_close(struct flexnpu *npu, unsigned int ms)
{
	unsigned long end = jiffies + msecs_to_jiffies(ms);

	WRITE_ONCE(npu->handover.closing, true);
	flexnpu_runner_kick(npu);
	while (!READ_ONCE(npu->handover.ours) && time_before(jiffies, end))
		msleep(5);
	if (READ_ONCE(npu->handover.ours))
		return 0;
	flexnpu_handover_open(npu);
	pr_warn("flexnpu: the secure world keeps the NPU; staying\n");
	return -EBUSY;
}

void flexnpu_handover_open(struct flexnpu *npu)
{
	WRITE_ONCE(npu->handover.closing, false);
	flexnpu_runner_kick(npu);
}

int flexnpu_handover_init(struct flexnpu *npu)
{
	unsigned long start = (unsigned long)flex_npu_core;

	npu->handover.flexmem = flexmem_get();
	if (!npu->handover.flexmem)
		return -EPROBE_DEFER; /* it is not up yet */
	npu->handover.code_bytes = (unsigned long)flex_npu_core_end - start;
	if (!PAGE_ALIGNED(start) || npu->handover.code_bytes > PAGE_SIZE)
		return -EINVAL; /* not one page: it has more than one physical address */
	npu->handover.code = PFN_PHYS(vmalloc_to_pfn((void *)start));
	if (state(npu) != FLEX_NPU_STATE_NORMAL)
		return -ENODEV;
	npu->handover.ours = true;
	npu->handover.wanted = true; /* perhaps it was, before we listened */
	flex_listen(npu->handover.flexmem, hear, npu);
	return 0;
}

void flexnpu_handover_exit(struct flexnpu *npu)
{
	flex_listen(npu->handover.flexmem, NULL, NULL);
}
