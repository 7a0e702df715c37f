/*
 * The page between the monitor and the NPU (abi/flex.toml says what its words mean), for EL2 and EL3 alike.
 * Functions take its address.
 */
#ifndef AARCH64_NPU_H
#define AARCH64_NPU_H

#include "arch/aarch64/system.h"
#include "core/limits.h"

static inline u32 npu_get(u64 control, u32 offset)
{
	return register32(control + offset);
}

static inline void npu_set(u64 control, u32 offset, u32 value)
{
	set_register32(control + offset, value);
}

static inline void npu_set_root(u64 control, u64 level1)
{
	set_register64(control + FLEX_NPU_AT_ROOT, level1);
}

static inline u64 npu_root(u64 control)
{
	return *(volatile u64 *)(control + FLEX_NPU_AT_ROOT);
}

/* Have it forget, and wait until it has: false when it does not answer. */
static inline bool npu_flush(u64 control)
{
	u64 end = read_register("cntpct_el0") + NPU_SECONDS_MAX * read_register("cntfrq_el0");
	u32 number = npu_get(control, FLEX_NPU_AT_FLUSH_DONE) + 1;

	barrier();
	npu_set(control, FLEX_NPU_AT_FLUSH, number);
	while (npu_get(control, FLEX_NPU_AT_FLUSH_DONE) != number)
		if (read_register("cntpct_el0") > end)
			return false;
	barrier();
	return true;
}

#endif
