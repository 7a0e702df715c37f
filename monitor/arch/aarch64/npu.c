/* The NPU, at EL2. */

#include "arch/aarch64/npu.h"

#include "arch/arch.h"
#include "core/layout.h"
#include "core/monitor.h"

void arch_npu_flush(void)
{
	u64 control = monitor_layout()->control;

	/* It says that it is busy and then looks at its tables: one of us sees the other. */
	barrier();
	if (npu_get(control, FLEX_NPU_AT_BUSY) && !npu_flush(control))
		arch_panic("the NPU does not answer");
}

void arch_npu_root(u64 level1)
{
	npu_set_root(monitor_layout()->control, level1);
	arch_npu_flush();
}

void arch_npu_reset(void)
{
	u64 control = monitor_layout()->control;

	npu_set(control, FLEX_NPU_AT_RESET, npu_get(control, FLEX_NPU_AT_RESET_DONE) + 1);
	barrier();
}

bool arch_npu_is_reset(void)
{
	u64 control = monitor_layout()->control;

	return npu_get(control, FLEX_NPU_AT_RESET) == npu_get(control, FLEX_NPU_AT_RESET_DONE);
}
