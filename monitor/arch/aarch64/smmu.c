#include "arch/aarch64/smmu.h"

#include "arch/aarch64/system.h"
#include "arch/arch.h"

/* Registers. */
#define CR0 (PLAT_SMMU + 0x20)
#define CR0_ACKNOWLEDGED (PLAT_SMMU + 0x24)
#define CR1 (PLAT_SMMU + 0x28)
#define CR2 (PLAT_SMMU + 0x2c)
#define STREAM_BASE (PLAT_SMMU + 0x80)
#define STREAM_CONFIG (PLAT_SMMU + 0x88)
#define QUEUE_BASE (PLAT_SMMU + 0x90)
#define QUEUE_PRODUCED (PLAT_SMMU + 0x98)
#define QUEUE_CONSUMED (PLAT_SMMU + 0x9c)

#define CR0_ENABLE 1
#define CR0_QUEUE 8
#define CR1_CACHED 0xd75 /* tables and queues: inner shareable, write-back */

#define STREAMS_LOG2 8 /* bus 0 */
#define STREAM_BYTES 64
#define STREAM_STAGE1 (5ULL << 1 | 1)

/* The queue has two places: an order, and the request to tell when it is done. */
#define QUEUE_LOG2 1
#define FORGET_CONFIGURATION 0x04
#define FORGET_TRANSLATIONS 0x10
#define SYNCHRONISE 0x46
#define ALL_STREAMS 31

#define CONTEXT                                                                                   \
	(32ULL /* T0SZ: 4 GiB */ | 1ULL << 8 | 1ULL << 10 | 3ULL << 12 /* walks: cached, shareable */ | \
	 1ULL << 30 /* no upper half */ | 1ULL << 31 /* valid */ | 2ULL << 32 /* 40 bits out */ |       \
	 1ULL << 41 /* 64-bit format */ | 7ULL << 45 /* record, abort; shared ASID */)
#define CONTEXT_MAIR 0xffULL

static u64 queue;
static u32 produced;

static void control(u32 value)
{
	set_register32(CR0, value);
	while (register32(CR0_ACKNOWLEDGED) != value)
		;
}

static void order(u64 what, u64 argument)
{
	u64 *entry = arch_at(queue);

	entry[0] = what;
	entry[1] = argument;
	entry[2] = SYNCHRONISE;
	entry[3] = 0;
	barrier();
	/* Two places are used, so index 0 comes again with the wrap bit, the one above it, turned. */
	produced ^= 1U << QUEUE_LOG2;
	set_register32(QUEUE_PRODUCED, produced);
	while (register32(QUEUE_CONSUMED) != produced)
		;
}

void smmu_init(const struct layout *layout)
{
	u64 streams = layout->hidden_base + PLAT_STREAM_TABLE;
	u64 context = layout->hidden_base + PLAT_CONTEXT_DESCRIPTOR;
	u64 *descriptor = arch_at(context), *entry, i;

	queue = layout->hidden_base + PLAT_COMMAND_QUEUE;
	produced = 0;
	descriptor[0] = CONTEXT;
	descriptor[1] = layout->devices.level1;
	descriptor[2] = 0;
	descriptor[3] = CONTEXT_MAIR;
	for (i = 0; i < 1ULL << STREAMS_LOG2; i++) {
		entry = arch_at(streams + i * STREAM_BYTES);
		entry[0] = context | STREAM_STAGE1;
		entry[1] = entry[2] = entry[3] = entry[4] = entry[5] = entry[6] = entry[7] = 0;
	}
	barrier();
	control(0);
	set_register32(CR1, CR1_CACHED);
	set_register32(CR2, 0);
	set_register64(STREAM_BASE, streams);
	set_register32(STREAM_CONFIG, STREAMS_LOG2);
	set_register64(QUEUE_BASE, queue | QUEUE_LOG2);
	set_register32(QUEUE_PRODUCED, 0);
	set_register32(QUEUE_CONSUMED, 0);
	control(CR0_QUEUE);
	order(FORGET_CONFIGURATION, ALL_STREAMS);
	order(FORGET_TRANSLATIONS, 0);
	control(CR0_QUEUE | CR0_ENABLE);
}

void smmu_flush(void)
{
	order(FORGET_TRANSLATIONS, 0);
}
