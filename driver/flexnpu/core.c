// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * See core.h. Comparisons instead of a switch, which could become a table of jumps, and accesses of
 * our own instead of readl(), which the kernel patches for some CPUs: the bytes must stay what they
 * are. tests/platforms/trustzone/test_npu_core.py checks the object.
 *
 * The registers are RAM that the NPU looks at, so the order of accesses is kept by barriers: what
 * describes a job is there before OP_EN, and what ended a job is read after OP_EN was seen to be 0.
 */
#include "core.h"

#define fence() asm volatile("dmb sy" ::: "memory")
#define reg(name) (*(volatile u32 *)((volatile char *)window + FLEX_NPU_REGISTER_##name))

__attribute__((section(".npu_core"), aligned(4096))) u64
flex_npu_core(volatile void *window, u64 op, u64 list, u64 commands, u64 tables, u64 tag)
{
	u64 status;

	if (op == FLEXNPU_OP_START) {
		if (reg(OP_EN) || reg(MMU_COMMAND))
			return 1;
		reg(INT_CLEAR) = ~0u;
		reg(INT_MASK) = 0; /* there is no interrupt line: INT_RAW is looked at */
		reg(MMU_DTE_ADDR) = tables;
		reg(MMU_COMMAND) = FLEX_NPU_MMU_COMMAND_ENABLE;
		reg(DMA_BASE) = 0;
		reg(DATA_ADDR) = list;
		reg(DATA_AMOUNT) = commands;
		reg(TASK_CON) = tag;
		fence();
		reg(OP_EN) = 1;
		return 0;
	}
	if (op == FLEXNPU_OP_STATUS) {
		status = reg(OP_EN) ? FLEXNPU_RUNNING : 0;
		status |= reg(MMU_COMMAND) == FLEX_NPU_MMU_COMMAND_RESET ? FLEXNPU_RESETTING : 0;
		fence();
		return status | reg(INT_RAW) | (u64)reg(TASK_STATUS) << 32;
	}
	if (op == FLEXNPU_OP_CLEAR) {
		reg(INT_CLEAR) = ~0u;
		return 0;
	}
	if (op == FLEXNPU_OP_FAULT)
		return reg(MMU_PAGE_FAULT_ADDR) | (u64)reg(MMU_STATUS) << 32;
	if (op == FLEXNPU_OP_RESET)
		reg(MMU_COMMAND) = FLEX_NPU_MMU_COMMAND_RESET;
	return 0;
}

/* Nothing of the section follows: -fno-toplevel-reorder. */
asm(".pushsection .npu_core, \"ax\"\n"
    ".globl flex_npu_core_end\n"
    "flex_npu_core_end:\n"
    ".popsection\n");
