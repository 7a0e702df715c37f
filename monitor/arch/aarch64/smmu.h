/*
 * The SMMUv3 in front of every device, which belongs to the monitor: the OS has neither its registers nor
 * a node of it in its device tree. All streams share one context.
 *
 * EL3 programs it, with tables that keep devices out of hidden memory, before it looks at EL2's image there;
 * EL2 then puts its own tables, which know single pages, in their place. Devices of the OS work throughout.
 */
#ifndef AARCH64_SMMU_H
#define AARCH64_SMMU_H

#include "arch/aarch64/system.h"
#include "core/layout.h"

#define SMMU_QUEUE_PRODUCED (PLAT_SMMU + 0x98)
#define SMMU_QUEUE_CONSUMED (PLAT_SMMU + 0x9c)
#define SMMU_STOPPED_PRODUCED (PLAT_SMMU + 0x100a8)
#define SMMU_STOPPED_CONSUMED (PLAT_SMMU + 0x100ac)

/* The queue has two places: an order, and the request to tell when it is done. */
#define SMMU_QUEUE_LOG2 1
#define SMMU_FORGET_CONFIGURATION 0x04, 31 /* of all streams */
#define SMMU_FORGET_TRANSLATIONS 0x30, 0
#define SMMU_SYNCHRONISE 0x46

/* Accesses that it stopped: as many as the other queue has room for behind its orders. More are dropped. */
#define SMMU_STOPPED_LOG2 4
#define SMMU_STOPPED_AT 0x800 /* in the same page */

/* Which word of the context descriptor points to the tables. */
#define SMMU_CONTEXT_TABLES 1

/* Give the order to the SMMU, whose queue is here, and wait until it is done. */
static inline void smmu_order(volatile u64 *queue, u64 what, u64 argument)
{
	/* Two places are used, so index 0 comes again with the wrap bit, the one above it, turned. */
	u32 produced = register32(SMMU_QUEUE_PRODUCED) ^ 1U << SMMU_QUEUE_LOG2;

	queue[0] = what;
	queue[1] = argument;
	queue[2] = SMMU_SYNCHRONISE;
	queue[3] = 0;
	barrier();
	set_register32(SMMU_QUEUE_PRODUCED, produced);
	while (register32(SMMU_QUEUE_CONSUMED) != produced)
		;
	barrier();
}

/* EL2: have devices reach what their tables map. */
void smmu_open(const struct layout *layout);

/* EL2: how many accesses of devices were stopped since the last time, 16 at most. Callers hold the lock. */
u64 smmu_stopped(void);

/* EL2: forget all translations; returns when that is done. Callers hold the lock. */
void smmu_flush(void);

#endif
