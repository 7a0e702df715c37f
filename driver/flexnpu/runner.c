// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The thread that runs one job after the other. It looks whether a job is over, since the emulated NPU
 * has no interrupt line: at first every few microseconds, later less often, an eighth of the time
 * that the job has run already.
 *
 * A job may be gone without an end: neither running nor with a bit in INT_RAW. The monitor may reset the
 * NPU whenever it likes, perhaps just while a job is written into its registers, which shows in a
 * translation that is off. Such a job runs again.
 *
 * A job that takes too long is reset. Its program hears of that at once, but its memory stays pinned
 * until the NPU says that the reset is done, or the monitor does: before, the NPU may still write to it.
 */
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/module.h>

#include "flexnpu.h"

static unsigned int job_ms = 10000;
module_param(job_ms, uint, 0644);
MODULE_PARM_DESC(job_ms, "how long one job may run before it is stopped");

static const unsigned int reset_ms = 1000;	/* for the NPU to answer at all */
static const unsigned int interrupted_max = 32; /* then something is wrong */

static u64 core(struct flexnpu *npu, enum flexnpu_op op)
{
	return flex_npu_core((volatile void __force *)npu->runner.window, op, 0, 0, 0, 0);
}

static bool start(struct flexnpu *npu, const struct flexnpu_job *job)
{
	if (flex_npu_core((volatile void __force *)npu->runner.window, FLEXNPU_OP_START, FLEXNPU_LIST_AT,
			  job->commands, virt_to_phys(job->space.directory), job->number))
		return false;
	if (!job->interrupted)
		flexnpu_count(npu, FLEXNPU_COUNT_LAUNCH_NS, ktime_get_ns() - job->submitted);
	return true;
}

static void pause(u64 ns)
{
	unsigned int us = clamp_t(u64, ns / NSEC_PER_USEC / 8, 20, 1000);

	usleep_range(us, 2 * us);
}

/* ---- how jobs end ---- */

static void note_end(struct flexnpu *npu, struct flexnpu_job *job, u32 raw, u32 mmu)
{
	u32 outcome = FLEXNPU_DONE, stopped = 0;

	if (raw & (FLEX_NPU_INTERRUPT_READ_FAULT | FLEX_NPU_INTERRUPT_WRITE_FAULT)) {
		outcome = FLEXNPU_FAULT;
		stopped = !!(mmu & FLEX_NPU_MMU_STATUS_MONITOR);
	} else if (raw & FLEX_NPU_INTERRUPT_BAD_COMMAND) {
		outcome = FLEXNPU_BAD_COMMAND;
	}
	flexnpu_count(npu, FLEXNPU_COUNT_FAULTS, outcome != FLEXNPU_DONE);
	flexnpu_count(npu, FLEXNPU_COUNT_JOBS, 1);
	flexnpu_job_end(job, outcome, stopped);
	flexnpu_job_put(job);
}

static void run_again(struct flexnpu *npu, struct flexnpu_job *job)
{
	flexnpu_count(npu, FLEXNPU_COUNT_INTERRUPTED, 1);
	if (++job->interrupted < interrupted_max) {
		flexnpu_jobs_again(job);
		return;
	}
	flexnpu_count(npu, FLEXNPU_COUNT_JOBS, 1);
	flexnpu_job_end(job, FLEXNPU_LOST, 0);
	flexnpu_job_put(job);
}

static void stop(struct flexnpu *npu, struct flexnpu_job *job)
{
	core(npu, FLEXNPU_OP_RESET);
	flexnpu_count(npu, FLEXNPU_COUNT_TIMEOUTS, 1);
	flexnpu_count(npu, FLEXNPU_COUNT_JOBS, 1);
	flexnpu_job_end(job, FLEXNPU_TIMED_OUT, 0);
	while (core(npu, FLEXNPU_OP_STATUS) & (FLEXNPU_RUNNING | FLEXNPU_RESETTING)) {
		if (flexnpu_handover_cut(npu, job))
			break;
		if (kthread_should_stop()) {
			pr_err("flexnpu: the NPU does not let go; the memory of a job stays pinned\n");
			return;
		}
		usleep_range(500, 1000);
	}
	flexnpu_job_put(job);
}

/* ---- one job ---- */

static void run_job(struct flexnpu *npu, struct flexnpu_job *job)
{
	u64 began = ktime_get_ns(), limit = (u64)job_ms * NSEC_PER_MSEC, ran = 0, status = 0;
	bool started = false;
	u32 mmu;

	while (!started || status & FLEXNPU_RUNNING) {
		if (ran > limit)
			return stop(npu, job);
		if (flexnpu_handover_cut(npu, job))
			return run_again(npu, job);
		started = started || start(npu, job);
		pause(ran);
		status = core(npu, FLEXNPU_OP_STATUS);
		ran = ktime_get_ns() - began;
	}
	flexnpu_count(npu, FLEXNPU_COUNT_BUSY_NS, ran);
	mmu = core(npu, FLEXNPU_OP_FAULT) >> 32;
	if (!(u32)status || !(mmu & FLEX_NPU_MMU_STATUS_PAGING))
		return run_again(npu, job);
	note_end(npu, job, status, mmu);
}

static bool runnable(struct flexnpu *npu)
{
	return flexnpu_handover_ours(npu) && flexnpu_jobs_waiting(npu);
}

static int run(void *data)
{
	struct flexnpu *npu = data;

	while (!kthread_should_stop()) {
		struct flexnpu_job *job = NULL;

		flexnpu_handover_step(npu);
		if (flexnpu_handover_ours(npu))
			job = flexnpu_jobs_next(npu);
		WRITE_ONCE(npu->runner.running, !!job);
		if (job)
			run_job(npu, job);
		else
			wait_event_idle_timeout(
				npu->runner.work,
				kthread_should_stop() || runnable(npu) || flexnpu_handover_due(npu),
				flexnpu_handover_patience(npu));
	}
	return 0;
}

/* ---- the thread ---- */

void flexnpu_runner_kick(struct flexnpu *npu)
{
	wake_up(&npu->runner.work);
}

bool flexnpu_runner_busy(struct flexnpu *npu)
{
	return READ_ONCE(npu->runner.running);
}

static int reset(struct flexnpu *npu)
{
	core(npu, FLEXNPU_OP_RESET);
	for (unsigned int ms = 0; ms < reset_ms; ms++) {
		if (!(core(npu, FLEXNPU_OP_STATUS) & (FLEXNPU_RUNNING | FLEXNPU_RESETTING)))
			return 0;
		usleep_range(900, 1100);
	}
	pr_err("flexnpu: the NPU does not answer\n");
	return -ENODEV;
}

int flexnpu_runner_init(struct flexnpu *npu, volatile void __iomem *window)
{
	int error;

	npu->runner.window = window;
	error = reset(npu);
	if (error)
		return error;
	npu->runner.thread = kthread_run(run, npu, "flexnpu");
	return PTR_ERR_OR_ZERO(npu->runner.thread);
}

void flexnpu_runner_exit(struct flexnpu *npu)
{
	kthread_stop(npu->runner.thread);
}
