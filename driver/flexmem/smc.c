// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
#include <linux/arm-smccc.h>
#include <linux/delay.h>
#include <linux/export.h>

#include "flex_run.h"
#include "flexmem.h"

int flex_call(struct flexmem *fm, enum flex_call call, u64 a, u64 b, u64 c, struct flex_results *results)
{
	struct arm_smccc_1_2_regs in = { .a0 = FLEX_SMC_BASE + call, .a1 = a, .a2 = b, .a3 = c };
	struct arm_smccc_1_2_regs out;

	arm_smccc_1_2_smc(&in, &out);
	if ((u32)call != FLEX_CALL_RUN)
		flex_lend_said(fm);
	if (results)
		*results = (struct flex_results){ { out.a1, out.a2, out.a3, out.a4 } };
	if ((int)out.a0 == FLEX_STATUS_DENIED)
		flex_count(&fm->counters, FLEX_COUNT_DENIED, 1);
	return (int)out.a0;
}
EXPORT_SYMBOL_GPL(flex_call);

int flex_call_patiently(struct flexmem *fm, enum flex_call call, u64 a, u64 b)
{
	unsigned int ms = FLEX_PATIENCE_MS;
	int status;

	while ((status = flex_call(fm, call, a, b, 0, NULL)) == FLEX_STATUS_BUSY && ms--)
		usleep_range(800, 1200);
	return status;
}
