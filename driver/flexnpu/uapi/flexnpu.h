/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR Apache-2.0 */
/*
 * /dev/flexnpu: matrix products by the NPU.
 *
 *   C[m,n] = sum over k of A[m,k] * B[n,k]
 *
 * B has one row for each column of C. Each matrix is where the caller says, in its own memory, with a
 * stride of its own; its rows are
 *
 *   format   A and B                                              C
 *   INT8     K bytes                                              N int32: exact
 *   FP16     K half floats                                        N floats: summed up in double, rounded once
 *   Q8_0     K/32 blocks: a half float, then 32 int8 (34 bytes)   N floats: summed up block by block
 *
 * SUBMIT queues a job and gives it a number; WAIT says what came of it and forgets it. Jobs of all
 * processes run one after the other, in the order in which they came. The matrices must stay as they
 * are until then, and C must not overlap A or B: the NPU can be taken from a job at any time, which
 * then runs again from its beginning. What is closed is forgotten: queued jobs do not run then.
 */
#ifndef UAPI_FLEXNPU_H
#define UAPI_FLEXNPU_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define FLEXNPU_M_MAX 4096
#define FLEXNPU_N_MAX 65536
#define FLEXNPU_K_MAX 65536
#define FLEXNPU_BLOCK 32		   /* values in a block of Q8_0; K is a multiple of it */
#define FLEXNPU_BYTES_MAX (64u << 20) /* of the three matrices together, in pages */
#define FLEXNPU_JOBS_MAX 16		   /* of one open file, queued or not yet waited for */

enum flexnpu_format {
	FLEXNPU_INT8 = 1,
	FLEXNPU_FP16 = 2,
	FLEXNPU_Q8_0 = 3,
};

struct flexnpu_submit {
	__u64 a, b, c; /* addresses */
	__u32 a_stride, b_stride, c_stride; /* bytes from a row to the next, at least those of a row */
	__u32 m, n, k;
	__u32 format;
	__u32 job; /* out: its number */
};

enum flexnpu_outcome {
	FLEXNPU_DONE = 0,
	FLEXNPU_FAULT = 1,	 /* an address that the NPU may not reach */
	FLEXNPU_BAD_COMMAND = 2, /* the NPU does not know how to do that */
	FLEXNPU_TIMED_OUT = 3,	 /* it took too long and was stopped */
	FLEXNPU_LOST = 4,	 /* the NPU was taken away from it too often */
};

struct flexnpu_wait {
	__u32 job;
	__u32 timeout_ms;
	__u32 outcome; /* out */
	__u32 stopped; /* out, of a fault: 1 when it was the monitor that stopped it */
};

/*
 * SUBMIT fails with EINVAL (what is asked for makes no sense), EFAULT (it is not the caller's memory),
 * EAGAIN (too many jobs of this file: WAIT for some), ENOMEM.
 */
#define FLEXNPU_SUBMIT _IOWR(0xf7, 1, struct flexnpu_submit)

/* WAIT fails with ENOENT (no such job), ETIME (it has not ended yet), EINTR. */
#define FLEXNPU_WAIT _IOWR(0xf7, 2, struct flexnpu_wait)

#endif
