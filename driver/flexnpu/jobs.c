// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Jobs: one matrix product each. A job has everything that the NPU needs for it, pinned: a list of
 * commands, the matrices, the translation that shows both to the NPU.
 *
 * A job belongs to the file that it came by and to whoever has it in hand: the queue, then the runner.
 * Who lets go last frees it. So a program that dies does not wait for the NPU, and what the NPU may
 * still write to stays pinned until the runner knows that it does not.
 */
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "flexnpu.h"

/* Where a job's memory is, for the NPU. Each matrix has room for more than FLEXNPU_BYTES_MAX. */
static const u32 places[FLEXNPU_BUFFERS] = { 0x10000000, 0x20000000, 0x30000000 };

static_assert((int)FLEXNPU_INT8 == FLEX_NPU_FORMAT_INT8 && (int)FLEXNPU_FP16 == FLEX_NPU_FORMAT_FP16 &&
	      (int)FLEXNPU_Q8_0 == FLEX_NPU_FORMAT_Q8_0);

/* ---- what is asked for ---- */

struct shape {
	u64 address;
	u32 rows, row, stride; /* row: bytes of one */
};

static u64 extent(const struct shape *shape)
{
	return (u64)(shape->rows - 1) * shape->stride + shape->row;
}

/* Bytes of a row of k values, or 0: there is no such row. */
static u32 row_bytes(u32 format, u32 k)
{
	switch (format) {
	case FLEXNPU_INT8:
		return k;
	case FLEXNPU_FP16:
		return 2 * k;
	case FLEXNPU_Q8_0:
		return k % FLEXNPU_BLOCK ? 0 : k / FLEXNPU_BLOCK * (2 + FLEXNPU_BLOCK);
	default:
		return 0;
	}
}

static int read_shapes(const struct flexnpu_submit *submit, struct shape *shapes)
{
	u64 pages = 0;
	u32 row;

	if (!submit->m || submit->m > FLEXNPU_M_MAX || !submit->n || submit->n > FLEXNPU_N_MAX ||
	    submit->k > FLEXNPU_K_MAX)
		return -EINVAL;
	row = row_bytes(submit->format, submit->k);
	shapes[FLEXNPU_A] = (struct shape){ submit->a, submit->m, row, submit->a_stride };
	shapes[FLEXNPU_B] = (struct shape){ submit->b, submit->n, row, submit->b_stride };
	shapes[FLEXNPU_C] = (struct shape){ submit->c, submit->m, 4 * submit->n, submit->c_stride };
	for (int i = 0; i < FLEXNPU_BUFFERS; i++) {
		if (!shapes[i].row || shapes[i].stride < shapes[i].row)
			return -EINVAL;
		pages += PFN_UP(offset_in_page(shapes[i].address) + extent(&shapes[i]));
	}
	return pages > FLEXNPU_BYTES_MAX >> PAGE_SHIFT ? -EINVAL : 0;
}

/* ---- making a job ---- */

static void command(struct flexnpu_job *job, enum flex_npu_target target, u64 reg, u64 value)
{
	job->list[job->commands++] = (u64)target << 48 | value << 16 | reg;
}

static int write_list(struct flexnpu_job *job, const struct flexnpu_submit *submit,
		      const struct shape *shapes)
{
	u32 at[FLEXNPU_BUFFERS];

	job->list = (u64 *)__get_free_page(GFP_KERNEL | GFP_DMA32 | __GFP_ZERO);
	if (!job->list)
		return -ENOMEM;
	for (int i = 0; i < FLEXNPU_BUFFERS; i++)
		at[i] = places[i] + offset_in_page(shapes[i].address);
	command(job, FLEX_NPU_TARGET_CNA, FLEX_NPU_OPERAND_FORMAT, submit->format);
	command(job, FLEX_NPU_TARGET_CNA, FLEX_NPU_OPERAND_M, submit->m);
	command(job, FLEX_NPU_TARGET_CNA, FLEX_NPU_OPERAND_N, submit->n);
	command(job, FLEX_NPU_TARGET_CNA, FLEX_NPU_OPERAND_K, submit->k);
	command(job, FLEX_NPU_TARGET_CNA, FLEX_NPU_OPERAND_A, at[FLEXNPU_A]);
	command(job, FLEX_NPU_TARGET_CNA, FLEX_NPU_OPERAND_A_STRIDE, submit->a_stride);
	command(job, FLEX_NPU_TARGET_CNA, FLEX_NPU_OPERAND_B, at[FLEXNPU_B]);
	command(job, FLEX_NPU_TARGET_CNA, FLEX_NPU_OPERAND_B_STRIDE, submit->b_stride);
	command(job, FLEX_NPU_TARGET_DPU, FLEX_NPU_OPERAND_C, at[FLEXNPU_C]);
	command(job, FLEX_NPU_TARGET_DPU, FLEX_NPU_OPERAND_C_STRIDE, submit->c_stride);
	command(job, FLEX_NPU_TARGET_RUN, 0, 1);
	return flexnpu_space_map(&job->space, FLEXNPU_LIST_AT, virt_to_phys(job->list), false);
}

struct flexnpu_job *flexnpu_job_create(struct flexnpu *npu, const struct flexnpu_submit *submit)
{
	struct shape shapes[FLEXNPU_BUFFERS];
	u64 submitted = ktime_get_ns();
	struct flexnpu_job *job;
	int error = read_shapes(submit, shapes);

	if (error)
		return ERR_PTR(error);
	job = kzalloc(sizeof(*job), GFP_KERNEL);
	if (!job)
		return ERR_PTR(-ENOMEM);
	job->npu = npu;
	kref_init(&job->references);
	INIT_LIST_HEAD(&job->queued);
	job->submitted = submitted;
	error = flexnpu_space_init(&job->space);
	if (!error)
		error = write_list(job, submit, shapes);
	for (int i = 0; !error && i < FLEXNPU_BUFFERS; i++)
		error = flexnpu_buffer_pin(npu, &job->buffers[i], &job->space, places[i], shapes[i].address,
					   extent(&shapes[i]), i == FLEXNPU_C);
	if (!error)
		return job;
	flexnpu_job_put(job);
	return ERR_PTR(error);
}

static void destroy(struct kref *references)
{
	struct flexnpu_job *job = container_of(references, struct flexnpu_job, references);

	for (int i = 0; i < FLEXNPU_BUFFERS; i++)
		flexnpu_buffer_unpin(job->npu, &job->buffers[i]);
	free_page((unsigned long)job->list);
	flexnpu_space_exit(&job->space);
	kfree(job);
}

void flexnpu_job_put(struct flexnpu_job *job)
{
	kref_put(&job->references, destroy);
}

/* ---- the queue ---- */

void flexnpu_queue_init(struct flexnpu *npu)
{
	spin_lock_init(&npu->queue.lock);
	INIT_LIST_HEAD(&npu->queue.jobs);
	init_waitqueue_head(&npu->queue.endings);
}

void flexnpu_jobs_queue(struct flexnpu_job *job)
{
	struct flexnpu *npu = job->npu;

	kref_get(&job->references);
	spin_lock(&npu->queue.lock);
	list_add_tail(&job->queued, &npu->queue.jobs);
	spin_unlock(&npu->queue.lock);
	flexnpu_runner_kick(npu);
}

struct flexnpu_job *flexnpu_jobs_next(struct flexnpu *npu)
{
	struct flexnpu_job *job;

	spin_lock(&npu->queue.lock);
	job = list_first_entry_or_null(&npu->queue.jobs, struct flexnpu_job, queued);
	if (job)
		list_del_init(&job->queued);
	spin_unlock(&npu->queue.lock);
	return job;
}

/* A job that was forgotten while it ran is not queued again: then this was the last reference. */
void flexnpu_jobs_again(struct flexnpu_job *job)
{
	struct flexnpu_queue *queue = &job->npu->queue;
	bool queued;

	spin_lock(&queue->lock);
	queued = !job->forgotten;
	if (queued)
		list_add(&job->queued, &queue->jobs);
	spin_unlock(&queue->lock);
	if (!queued)
		flexnpu_job_put(job);
}

void flexnpu_jobs_forget(struct flexnpu_job *job)
{
	struct flexnpu_queue *queue = &job->npu->queue;
	bool was_queued;

	spin_lock(&queue->lock);
	job->forgotten = true;
	was_queued = !list_empty(&job->queued);
	list_del_init(&job->queued);
	spin_unlock(&queue->lock);
	if (was_queued)
		flexnpu_job_put(job);
}

bool flexnpu_jobs_waiting(struct flexnpu *npu)
{
	return !list_empty_careful(&npu->queue.jobs);
}

void flexnpu_job_end(struct flexnpu_job *job, u32 outcome, u32 stopped)
{
	job->outcome = outcome;
	job->stopped = stopped;
	smp_store_release(&job->ended, true);
	wake_up_all(&job->npu->queue.endings);
}

int flexnpu_job_wait(struct flexnpu_job *job, unsigned int ms)
{
	long left = wait_event_interruptible_timeout(job->npu->queue.endings, smp_load_acquire(&job->ended),
						     msecs_to_jiffies(ms));

	if (left < 0)
		return -EINTR;
	return left ? 0 : -ETIME;
}
