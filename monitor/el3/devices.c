/*
 * The SMMU as EL2 finds it: devices reach RAM, but nothing that is hidden.
 *
 * While protection is off the OS can program the SMMU, and tell devices to write to hidden memory at any
 * later moment. Yet devices that are at work for it must not lose an access when protection comes back,
 * or they break. So nothing is ever cut off: the SMMU gets new tables, forgets what it knew, and if the
 * tables then still say what was written to them, no device can alter anything hidden any more.
 */

#include "arch/aarch64/npu.h"
#include "arch/aarch64/smmu.h"
#include "el3/el3.h"

extern const struct board el3_board;

#define CR0 (PLAT_SMMU + 0x20)
#define CR0_ACKNOWLEDGED (PLAT_SMMU + 0x24)
#define CR1 (PLAT_SMMU + 0x28)
#define CR2 (PLAT_SMMU + 0x2c)
#define GBPA (PLAT_SMMU + 0x44)
#define IRQ_CTRL (PLAT_SMMU + 0x50)
#define ERRORS (PLAT_SMMU + 0x60)
#define ERRORS_SEEN (PLAT_SMMU + 0x64)
#define STREAM_BASE (PLAT_SMMU + 0x80)
#define STREAM_CONFIG (PLAT_SMMU + 0x88)
#define QUEUE_BASE (PLAT_SMMU + 0x90)
#define STOPPED_BASE (PLAT_SMMU + 0xa0)

#define CR0_ENABLE 1
#define CR0_STOPPED 4
#define CR0_QUEUE 8
#define CR0_CHECK 0x10 /* a device that says that it translated by itself is looked up all the same */
#define CR1_CACHED 0xd75 /* tables and queues: inner shareable, write-back */
#define GBPA_UPDATE (1U << 31) /* without the bit that aborts: let through while disabled */

#define STREAMS_LOG2 8 /* bus 0 */
#define STREAM_LONGS 8
#define STREAM_STAGE1 (5ULL << 1 | 1)
#define CONTEXT                                                                                   \
	(32ULL /* T0SZ: 4 GiB */ | 1ULL << 8 | 1ULL << 10 | 3ULL << 12 /* walks: cached, shareable */ | \
	 1ULL << 30 /* no upper half */ | 1ULL << 31 /* valid */ | 2ULL << 32 /* 40 bits out */ |       \
	 1ULL << 41 /* 64-bit format */ | 7ULL << 45 /* record, abort; shared ASID */)
#define CONTEXT_MAIR 0xffULL
#define CONTEXT_LONGS 8

#define TABLE 3ULL
#define BLOCK (1ULL << 10 | 3ULL << 8 | 1ULL << 6 | 1ULL) /* RAM, read and write at any privilege */

/* One pass over everything that the SMMU reads: writes it, or sees whether it is as it was written. */
struct pass {
	bool check;
	u64 differ;
};

static void word(struct pass *pass, u64 table, u64 index, u64 value)
{
	volatile u64 *at = (volatile u64 *)table + index;

	if (pass->check)
		pass->differ |= *at ^ value;
	else
		*at = value;
}

static void tables(struct pass *pass, const struct layout *layout, u64 level1)
{
	u64 i, at, level2 = level1 + FLEX_PAGE_BYTES;

	for (i = 0; i < ENTRIES; i++)
		word(pass, level1, i, i < 4 ? (level2 + i * FLEX_PAGE_BYTES) | TABLE : 0);
	for (i = 0; i < 4 * ENTRIES; i++) {
		at = i * BLOCK_BYTES;
		word(pass, level2, i, at >= layout->ram_base && at < layout->hidden_base ? at | BLOCK : 0);
	}
}

static u64 everything(bool check, const struct layout *layout)
{
	struct pass pass = { check, 0 };
	u64 streams = layout->hidden_base + PLAT_STREAM_TABLE, i;
	u64 context = layout->hidden_base + PLAT_CONTEXT_DESCRIPTOR;
	u64 level1 = layout->hidden_base + PLAT_DEVICE_TABLES;

	tables(&pass, layout, level1);
	for (i = 0; i < CONTEXT_LONGS; i++)
		word(&pass, context, i, i == 0 ? CONTEXT : i == SMMU_CONTEXT_TABLES ? level1 : i == 3 ? CONTEXT_MAIR : 0);
	for (i = 0; i < STREAM_LONGS << STREAMS_LOG2; i++)
		word(&pass, streams, i, i % STREAM_LONGS == 0 ? context | STREAM_STAGE1 : 0);
	barrier();
	return pass.differ;
}

static void control(u32 value)
{
	set_register32(CR0, value);
	while (register32(CR0_ACKNOWLEDGED) != value)
		;
}

/* As after a reset, whatever the OS programmed while it could: what is stopped is for EL2, no messages, no errors. */
static void program(u64 streams, u64 queue)
{
	set_register32(GBPA, GBPA_UPDATE);
	control(0);
	set_register32(IRQ_CTRL, 0);
	set_register32(ERRORS_SEEN, register32(ERRORS));
	set_register32(CR1, CR1_CACHED);
	set_register32(CR2, 0);
	set_register64(STREAM_BASE, streams);
	set_register32(STREAM_CONFIG, STREAMS_LOG2);
	set_register64(QUEUE_BASE, queue | SMMU_QUEUE_LOG2);
	set_register32(SMMU_QUEUE_PRODUCED, 0);
	set_register32(SMMU_QUEUE_CONSUMED, 0);
	set_register64(STOPPED_BASE, (queue + SMMU_STOPPED_AT) | SMMU_STOPPED_LOG2);
	set_register32(SMMU_STOPPED_PRODUCED, 0);
	set_register32(SMMU_STOPPED_CONSUMED, 0);
	control(CR0_ENABLE | CR0_STOPPED | CR0_QUEUE | CR0_CHECK);
}

/*
 * The NPU, which passes tables of its own. The OS could write its page, too: so one flush may have been the
 * OS's own, from before the tables changed; a second one, with a number that nobody knew, is not.
 */
static bool confine_npu(const struct layout *layout)
{
	u64 level1 = layout->hidden_base + PLAT_DEVICE_TABLES;

	if (!layout->npu)
		return true;
	npu_set_root(layout->control, level1);
	npu_set(layout->control, FLEX_NPU_AT_RESET, npu_get(layout->control, FLEX_NPU_AT_RESET_DONE));
	return npu_flush(layout->control) && npu_flush(layout->control) && npu_root(layout->control) == level1;
}

/* Nobody but us resets it with the machine: it is a device that keeps on working through that. */
bool devices_reset_npu(const struct layout *layout)
{
	u64 at, control = layout->control, end = read_register("cntpct_el0") + NPU_SECONDS_MAX * read_register("cntfrq_el0");
	u32 number = npu_get(control, FLEX_NPU_AT_RESET_DONE) + 1;

	if (!layout->npu)
		return true;
	npu_set(control, FLEX_NPU_AT_RESET, number);
	while (npu_get(control, FLEX_NPU_AT_RESET_DONE) != number)
		if (read_register("cntpct_el0") > end)
			return false;
	barrier();
	for (at = FLEX_NPU_WINDOW_KEPT; at < FLEX_NPU_WINDOW_BYTES; at += sizeof(u64))
		set_register64(layout->window + at, 0);
	barrier();
	return true;
}

bool devices_confine(const struct layout *layout)
{
	volatile u64 *queue = (volatile u64 *)(layout->hidden_base + PLAT_COMMAND_QUEUE);

	everything(false, layout);
	program(layout->hidden_base + PLAT_STREAM_TABLE, (u64)queue);
	smmu_order(queue, SMMU_FORGET_CONFIGURATION);
	smmu_order(queue, SMMU_FORGET_TRANSLATIONS);
	/* A device could have switched LPIs on until now, and these altered the tables. */
	return gic_end_lpis((u32)el3_board.cpus) && confine_npu(layout) && everything(true, layout) == 0;
}
