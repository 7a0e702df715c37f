// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * CPU time for the secure world. On each CPU a thread makes RUN again and again: while it is in the call,
 * the secure world runs there, until an interrupt of this kernel is pending. So the scheduler shares the
 * CPU out between the secure world and others as it does between threads, and may starve it.
 *
 * An idle one is not called again before its time, or before something was said to it. What was said
 * after a thread's RUN began, it may not have heard: so the number of what was said is read before.
 *
 * Threads belong to the module, not to an instance, because what makes one for each CPU (and parks it
 * while that is off) passes nothing on: there is one instance.
 */
#include <linux/cpu.h>
#include <linux/hrtimer.h>
#include <linux/kthread.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/smpboot.h>
#include <linux/timekeeping.h>
#include <linux/wait.h>

#include "flexmem.h"
#include "flex_run.h"

static struct flexmem *lender;
static DEFINE_PER_CPU(struct task_struct *, threads);

bool flex_lends(struct flexmem *fm)
{
	return READ_ONCE(fm->lending.on) && READ_ONCE(fm->lending.state) == FLEX_LENDING_POSSIBLE;
}

static void stop(struct flexmem *fm, enum flex_lending_state state)
{
	WRITE_ONCE(fm->lending.state, state);
	wake_up_all(&fm->lending.idle);
}

static int run(struct flexmem *fm, struct flex_results *results)
{
	u64 began = ktime_get_ns();
	int status = flex_call(fm, FLEX_CALL_RUN, fm->ring.page, fm->ring.pages, 0, results);

	if (!status) {
		flex_count(&fm->counters, FLEX_COUNT_RUNS, 1);
		flex_count(&fm->counters, FLEX_COUNT_LENT_NS, ktime_get_ns() - began);
	}
	return status;
}

static void rest(struct flexmem *fm, unsigned int said, u64 ns)
{
	ktime_t time = ns && ns < KTIME_MAX ? ns : KTIME_MAX;

	flex_count(&fm->counters, FLEX_COUNT_IDLES, 1);
	wait_event_interruptible_hrtimeout(fm->lending.idle,
					   (unsigned int)atomic_read(&fm->lending.said) != said || !flex_lends(fm) ||
						   kthread_should_park() || kthread_should_stop(),
					   time);
}

static void lend(unsigned int cpu)
{
	struct flexmem *fm = lender;
	unsigned int said = atomic_read(&fm->lending.said);
	struct flex_results results;

	if (run(fm, &results)) {
		stop(fm, FLEX_LENDING_NOBODY);
		return;
	}
	switch (results.x[0]) {
	case FLEX_RUN_INTERRUPTED:
		flex_count(&fm->counters, FLEX_COUNT_INTERRUPTED, 1);
		cond_resched();
		break;
	case FLEX_RUN_IDLE:
		rest(fm, said, results.x[1]);
		break;
	case FLEX_RUN_ENDED:
		if (flex_lends(fm))
			pr_err("flexmem: the secure world has ended: %llu\n", results.x[1]);
		stop(fm, FLEX_LENDING_ENDED);
		break;
	}
}

static int should_run(unsigned int cpu)
{
	return flex_lends(lender);
}

static struct smp_hotplug_thread on_each_cpu_thread = {
	.store = &threads,
	.thread_should_run = should_run,
	.thread_fn = lend,
	.thread_comm = "flexlend/%u",
};

void flex_lend_said(struct flexmem *fm)
{
	atomic_inc(&fm->lending.said);
	if (wq_has_sleeper(&fm->lending.idle))
		wake_up_all(&fm->lending.idle);
}

void flex_lend_switch(struct flexmem *fm, bool on)
{
	unsigned int cpu;

	WRITE_ONCE(fm->lending.on, on);
	wake_up_all(&fm->lending.idle);
	cpus_read_lock();
	for_each_online_cpu(cpu)
		wake_up_process(per_cpu(threads, cpu));
	cpus_read_unlock();
}

int flex_lend_start(struct flexmem *fm)
{
	lender = fm;
	return smpboot_register_percpu_thread(&on_each_cpu_thread);
}

void flex_lend_stop(struct flexmem *fm)
{
	flex_lend_switch(fm, false);
	smpboot_unregister_percpu_thread(&on_each_cpu_thread);
}

void flex_lend_init(struct flexmem *fm)
{
	init_waitqueue_head(&fm->lending.idle);
	fm->lending.on = true;
}
