/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The driver's core: all there is to know about the NPU's registers. It runs in both worlds, as the
 * very same bytes: here, called as any function, and for the secure world in the monitor's sandbox,
 * which has one page of code, one of stack and the registers, and nothing else. Therefore it
 *
 *   - is one function in a section of its own, at most a page, that runs wherever it lies;
 *   - keeps nothing: no data, no constants outside of its instructions, no calls;
 *   - never waits: who called it looks again.
 */
#ifndef FLEXNPU_CORE_H
#define FLEXNPU_CORE_H

#include <linux/types.h>

#include "flex.h"

enum flexnpu_op {
	/*
	 * Starts a job: `commands` commands that lie at the NPU's address `list`, in the translation
	 * whose directory lies at physical address `tables`; `tag` is the caller's. Returns 0, or 1 when
	 * a job runs or a reset is not over; nothing was changed then.
	 */
	FLEXNPU_OP_START = FLEX_NPU_START, /* what the monitor has it do */
	/* Returns INT_RAW, operations finished << 32, and FLEXNPU_RUNNING while the job is not over. */
	FLEXNPU_OP_STATUS = 1,
	/* Forgets what the last job ended with. Returns 0. */
	FLEXNPU_OP_CLEAR = 2,
	/* Returns the address of the last fault, and MMU_STATUS << 32. */
	FLEXNPU_OP_FAULT = 3,
	/* Asks for the job to be stopped and all to be as new. FLEXNPU_RESETTING until it is. Returns 0. */
	FLEXNPU_OP_RESET = 4,
};

/* what the core adds to INT_RAW */
#define FLEXNPU_RESETTING (1u << 30)
#define FLEXNPU_RUNNING (1u << 31)

u64 flex_npu_core(volatile void *window, u64 op, u64 list, u64 commands, u64 tables, u64 tag);
extern const char flex_npu_core_end[]; /* where its bytes end */

#endif
