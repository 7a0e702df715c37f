/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The NPU's driver. The NPU is this kernel's, like any device, until the secure world asks for it;
 * then it is handed over, and comes back.
 *
 *   main.c         the ladder up and down
 *   device.c       /dev/flexnpu (uapi/flexnpu.h says what it does)
 *   jobs.c         what a job is, and the queue
 *   runner.c       the thread that runs one job after the other
 *   translation.c  the NPU's own translation, over pages of programs
 *   handover.c     the NPU to the secure world and back
 *   debugfs.c      what is going on
 *   core.c         registers: the part that the secure world uses, too
 *
 * Who may touch the NPU's registers: the runner's thread and, before it starts, main.c. The same
 * thread hands the NPU over, and while it is away (flexnpu_handover_ours() says so) touches nothing:
 * once NPU_GRANT was called, an access would fault. So there is no lock for that, and none is needed.
 *
 * All state is in one `struct flexnpu`, made by probe and passed to every function; what is outside of it
 * are module parameters. Each file changes its own part of the struct only. The queue has a spinlock
 * (jobs.c), a file's jobs a mutex (device.c). Counters are atomic.
 */
#ifndef FLEXNPU_H
#define FLEXNPU_H

#include <linux/atomic.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/miscdevice.h>
#include <linux/mm_types.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/wait.h>

#include "core.h"
#include "uapi/flexnpu.h"

enum flexnpu_counter {
	FLEXNPU_COUNT_JOBS,	   /* run to their end, whatever that was */
	FLEXNPU_COUNT_FAULTS,	   /* of them: ended by a fault or a bad command */
	FLEXNPU_COUNT_TIMEOUTS,	   /* of them: stopped, since they took too long */
	FLEXNPU_COUNT_INTERRUPTED, /* times that the NPU was taken from a running job */
	FLEXNPU_COUNT_LAUNCH_NS,   /* time from SUBMIT until a job was first started, in the queue, too */
	FLEXNPU_COUNT_BUSY_NS,	   /* time in which a job ran */
	FLEXNPU_COUNT_WANTS,	   /* notices NPU_WANTED */
	FLEXNPU_COUNT_GRANTS,	   /* times handed over */
	FLEXNPU_COUNT_GRANT_NS,	   /* time from the first NPU_GRANT to the one that was OK */
	FLEXNPU_COUNT_ASKS,	   /* times asked for */
	FLEXNPU_COUNT_BACKS,	   /* times come back */
	FLEXNPU_COUNT_AWAY_NS,	   /* time handed over */
	FLEXNPU_COUNTERS,
};

struct flexnpu_queue {
	spinlock_t lock;
	struct list_head jobs;	   /* under lock */
	wait_queue_head_t endings; /* who waits for a job's end */
};

struct flexnpu_runner {
	volatile void __iomem *window; /* the registers */
	struct task_struct *thread;
	wait_queue_head_t work;
	bool running; /* a job is in hand: to be shown */
};

struct flexnpu_handover {
	struct flexmem *flexmem;
	phys_addr_t code; /* the core's bytes, as the monitor is told of them */
	unsigned long code_bytes;

	/* The runner's, see handover.c. */
	bool ours;
	u64 since; /* ns: it became ours, or theirs */
	u64 asked; /* jiffies */

	/* Flags of others. */
	bool wanted, back, closing;
	u64 wanted_at; /* ns; before `wanted` */
};

struct flexnpu {
	struct flexnpu_queue queue;
	struct flexnpu_runner runner;
	struct flexnpu_handover handover;
	atomic_long_t pinned; /* pages of all jobs: translation.c */
	struct miscdevice device;
	atomic64_t counters[FLEXNPU_COUNTERS];
	struct dentry *folder; /* debugfs.c */
};

/* ---- translation.c ---- */

struct flexnpu_space {
	u32 *directory;
};

struct flexnpu_buffer {
	struct page **pages;
	unsigned long count;
	bool written; /* by the NPU */
};

int flexnpu_space_init(struct flexnpu_space *space);
void flexnpu_space_exit(struct flexnpu_space *space); /* once the NPU does not use it any more */
/* Shows the NPU a page at its address `iova`. -ENOMEM, or -ERANGE when it lies too high for it. */
int flexnpu_space_map(struct flexnpu_space *space, u32 iova, phys_addr_t page, bool writable);

/*
 * Pins the caller's memory and shows it to the NPU at `iova`, a multiple of a page; the first byte is
 * where it lies in its page. -EFAULT when it is not the caller's, -ENOMEM when too much is pinned.
 */
int flexnpu_buffer_pin(struct flexnpu *npu, struct flexnpu_buffer *buffer, struct flexnpu_space *space,
		       u32 iova, u64 address, u64 bytes, bool written);
void flexnpu_buffer_unpin(struct flexnpu *npu, struct flexnpu_buffer *buffer);

/* ---- jobs.c ---- */

#define FLEXNPU_LIST_AT 0x40000000 /* where each job's commands are, for the NPU */

enum { FLEXNPU_A, FLEXNPU_B, FLEXNPU_C, FLEXNPU_BUFFERS };

struct flexnpu_job {
	struct flexnpu *npu;
	struct kref references; /* the file's, and that of the queue or the runner */
	struct list_head of_file, queued;
	u32 number;    /* in its file */
	u64 submitted; /* ns */

	struct flexnpu_space space;
	struct flexnpu_buffer buffers[FLEXNPU_BUFFERS];
	u64 *list;
	unsigned int commands;

	unsigned int interrupted; /* times that the NPU was taken from it: the runner's */
	bool forgotten;		  /* its file is closed: under the queue's lock */
	bool ended;		  /* after what follows was written */
	u32 outcome, stopped;
};

/* Makes a job of what the caller, whose memory it is about, asks for; or ERR_PTR(). Has one reference. */
struct flexnpu_job *flexnpu_job_create(struct flexnpu *npu, const struct flexnpu_submit *submit);
void flexnpu_job_put(struct flexnpu_job *job);

void flexnpu_queue_init(struct flexnpu *npu);
void flexnpu_jobs_queue(struct flexnpu_job *job);	    /* takes a reference */
struct flexnpu_job *flexnpu_jobs_next(struct flexnpu *npu); /* with its reference; NULL: there is none */
void flexnpu_jobs_again(struct flexnpu_job *job);	    /* gives the reference back: the next again */
void flexnpu_jobs_forget(struct flexnpu_job *job);	    /* takes it out of the queue if it is there */
void flexnpu_job_end(struct flexnpu_job *job, u32 outcome, u32 stopped); /* the reference stays */
bool flexnpu_jobs_waiting(struct flexnpu *npu);		    /* whether there is a next one */
/* Waits for a job's end. 0, -ETIME or -EINTR. */
int flexnpu_job_wait(struct flexnpu_job *job, unsigned int ms);

/* ---- runner.c ---- */

/* Resets the NPU and starts the thread. -ENODEV when nothing answers at the registers. */
int flexnpu_runner_init(struct flexnpu *npu, volatile void __iomem *window);
void flexnpu_runner_exit(struct flexnpu *npu);
void flexnpu_runner_kick(struct flexnpu *npu); /* any context: there is something to do */
bool flexnpu_runner_busy(struct flexnpu *npu); /* whether it has a job in hand */

/* ---- handover.c: what says "runner" is for its thread alone ---- */

int flexnpu_handover_init(struct flexnpu *npu);
void flexnpu_handover_exit(struct flexnpu *npu);
bool flexnpu_handover_ours(struct flexnpu *npu); /* runner */
/* Whether there is something for _step() to do now; and in how many jiffies there will be. Runner. */
bool flexnpu_handover_due(struct flexnpu *npu);
long flexnpu_handover_patience(struct flexnpu *npu);
/* Between two jobs: hands the NPU over, asks for it, or takes it as it came back. Runner. */
void flexnpu_handover_step(struct flexnpu *npu);
/*
 * While a job runs: hands the NPU over if the job had its time, which stops the job. Whether it did;
 * when not, the NPU is ours, though the job may be gone. Runner.
 */
bool flexnpu_handover_cut(struct flexnpu *npu, const struct flexnpu_job *job);
/* Gets the NPU back and keeps it, waiting at most `ms`. 0, or -EBUSY: the secure world keeps it. */
int flexnpu_handover_close(struct flexnpu *npu, unsigned int ms);
void flexnpu_handover_open(struct flexnpu *npu);

/* ---- debugfs.c ---- */

void flexnpu_count(struct flexnpu *npu, enum flexnpu_counter counter, u64 amount);
void flexnpu_debugfs_init(struct flexnpu *npu);
void flexnpu_debugfs_exit(struct flexnpu *npu);

/* ---- device.c ---- */

int flexnpu_device_init(struct flexnpu *npu);
void flexnpu_device_exit(struct flexnpu *npu);

#endif
