#include "arch/aarch64/smmu.h"

#include "arch/arch.h"

static u64 *queue;

void smmu_open(const struct layout *layout)
{
	volatile u64 *context = arch_at(layout->hidden_base + PLAT_CONTEXT_DESCRIPTOR);

	queue = arch_at(layout->hidden_base + PLAT_COMMAND_QUEUE);
	/* What both tables map they map alike: a device that is at work notices nothing. */
	context[SMMU_CONTEXT_TABLES] = layout->devices.level1;
	smmu_order(queue, SMMU_FORGET_CONFIGURATION);
	smmu_order(queue, SMMU_FORGET_TRANSLATIONS);
}

void smmu_flush(void)
{
	smmu_order(queue, SMMU_FORGET_TRANSLATIONS);
}

u64 smmu_stopped(void)
{
	u32 produced = register32(SMMU_STOPPED_PRODUCED), consumed = register32(SMMU_STOPPED_CONSUMED);

	if (produced != consumed)
		set_register32(SMMU_STOPPED_CONSUMED, produced);
	return (produced - consumed) % (2U << SMMU_STOPPED_LOG2);
}
